from __future__ import annotations

import pytest

from acq.training.schedule import PIXELS_AT_ONCE, PIXELS_KEPT, images_that_fit, learning_rate_factor


@pytest.mark.parametrize("steps", [1, 2, 7, 400])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5])
def test_the_learning_rate_rises_and_falls(steps: int, warmup: float) -> None:
    """The factor rises to one and then only falls, and it is never zero, so no step is wasted."""
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    peak = factors.index(max(factors))
    assert max(factors) == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors) > 0


@pytest.mark.parametrize(
    ("size", "batch", "kept"), [(32, 64, 512), (128, 64, 512), (224, 20, 208), (227, 20, 202), (4000, 4, 4)]
)
def test_large_images_come_in_smaller_batches(size: int, batch: int, kept: int) -> None:
    """The usual number is halved into whole pairs that fit the pixels, down to the least number."""
    input_size = (3, size, size)
    assert images_that_fit(64, input_size, pixels=PIXELS_AT_ONCE, least=4) == batch
    assert images_that_fit(512, input_size, pixels=PIXELS_KEPT, least=4) == kept


def test_sides_may_differ() -> None:
    """Pixels are those of both sides, whatever the number of channels."""
    assert images_that_fit(64, (1, 100, 10), pixels=10_000, least=2) == 10
    assert images_that_fit(64, (3, 10, 100), pixels=10_000, least=2) == 10
