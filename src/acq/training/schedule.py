"""Numbers that follow from a step or from the image size."""

from __future__ import annotations

import math

PIXELS_AT_ONCE = 1 << 20  # of the images in one training batch, channels apart: bounds memory and time
PIXELS_KEPT = 10 << 20  # of the images of a dataset


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up followed by a cosine decay to zero.

    Args:
        step: Counted from 0.
        steps: Of the whole phase.
        warmup: Share of the steps in which the factor rises.

    Returns:
        The factor of the learning rate, in (0, 1].
    """
    peak = max(1, round(warmup * steps))
    if step < peak:
        return (step + 1) / peak
    return 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak)))


def images_that_fit(usual: int, input_size: tuple[int, int, int], *, pixels: int, least: int) -> int:
    """``usual`` images, or an even number with at most ``pixels`` pixels in all; at least ``least``.

    Args:
        usual: Number of images where memory allows.
        input_size: Channels, height and width.
        pixels: Most pixels in all, channels apart.
        least: Fewest images.
    """
    _, height, width = input_size
    return min(usual, max(least, pixels // (height * width) // 2 * 2))
