"""Random draws that scenes and drawings share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Range = tuple[float, float]  # bounds of a uniform draw


def uniform(shape: tuple[int, ...], bounds: Range, rng: torch.Generator) -> Tensor:
    """Uniform numbers between two bounds, on the device of the random state."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=rng, device=rng.device)


def in_chunks(count: int, most: int, draw: Callable[[int], Tensor]) -> Tensor:
    """``count`` images of which at most ``most`` are drawn at once, which bounds memory.

    Args:
        count: At least 1.
        most: Images per draw.
        draw: Draws that many images [n, C, H, W].
    """
    return torch.cat([draw(min(most, count - start)) for start in range(0, count, most)])
