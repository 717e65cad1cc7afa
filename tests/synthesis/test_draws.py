from __future__ import annotations

import pytest
import torch
from torch import Tensor

from acq.synthesis.draws import in_chunks, uniform


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-3.0, 2.0), (0.5, 0.5)])
def test_uniform_numbers_fill_their_bounds(bounds: tuple[float, float]) -> None:
    """They lie between the bounds, with the mean and the deviation of a uniform distribution."""
    low, high = bounds
    x = uniform((100, 200), bounds, rng())
    assert x.shape == (100, 200)
    assert low <= x.min()
    assert x.max() <= high
    torch.testing.assert_close(x.mean().item(), (low + high) / 2, rtol=0, atol=0.05)
    torch.testing.assert_close(x.std().item(), (high - low) / 12**0.5, rtol=0, atol=0.05)


@pytest.mark.parametrize(("count", "asked"), [(3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_chunks_are_drawn_one_after_the_other(count: int, asked: list[int]) -> None:
    """No draw has more than the most, and the results stand in their order."""
    seen = list[int]()

    def draw(number: int) -> Tensor:
        seen.append(number)
        return torch.full((number, 1), float(len(seen)))

    x = in_chunks(count, 4, draw)
    assert seen == asked
    assert x.flatten().tolist() == [float(place) for place, number in enumerate(asked, 1) for _ in range(number)]
