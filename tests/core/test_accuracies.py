from __future__ import annotations

import pytest
import torch

from acq.core.accuracies import change_margin, margin


@pytest.mark.parametrize(("percent", "count", "points"), [(90.0, 1000, 1.859), (50.0, 100, 9.8), (100.0, 10, 0.0)])
def test_the_margin_is_that_of_the_normal_approximation(percent: float, count: int, points: float) -> None:
    """1.96 sqrt(p (1 - p) / n), in percentage points."""
    assert margin(percent, count) == pytest.approx(points, abs=1e-3)


@pytest.mark.parametrize(("lost", "gained", "points"), [(25, 10, 1.156), (0, 0, 0.0), (10, 25, 1.156), (0, 40, 1.215)])
def test_the_margin_of_a_change_is_that_of_pairs(lost: int, gained: int, points: float) -> None:
    """The standard error of the mean of n changes, each -1, 0 or 1, by definition."""
    changes = torch.tensor([-1.0] * lost + [1.0] * gained + [0.0] * (1000 - lost - gained))
    expected = 196 * changes.std(correction=0).item() / 1000**0.5
    assert change_margin(lost, gained, 1000) == pytest.approx(expected, abs=1e-6) == pytest.approx(points, abs=1e-3)
