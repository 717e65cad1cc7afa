from __future__ import annotations

import math

import pytest

from acq.analysis.expected_loss import FITTED, ExpectedLoss, Law, expected_loss, relative_error
from acq.training.selection import Selection, StudentQuality

LAW = Law(factor=100.0, spread=2.0)


def selection(divergence: float, spread: float | None) -> Selection:
    """Candidates of which the last one was kept, with this divergence."""
    kept = StudentQuality(0.1, 98.0, divergence)
    return Selection({"first": StudentQuality(0.5, 50.0, 9.0), "trained": kept}, "trained", kept, 20.0, spread)


def test_the_loss_is_in_proportion_to_the_error() -> None:
    """The range is from half to twice the estimate, and 0.7 points of chance beyond both."""
    found = LAW.loss(0.025)
    assert found.points == pytest.approx(2.5)
    assert found.high == pytest.approx(5.7)
    assert found.low == pytest.approx(0.55)


def test_a_student_like_its_teacher_may_lose_or_win_a_little() -> None:
    """The range holds 0 where the error is 0, and both ends rise with the error."""
    found = LAW.loss(0.0)
    assert (found.low, found.points, found.high) == (-0.7, 0.0, 0.7)
    later = [LAW.loss(error) for error in (0.001, 0.01, 0.1)]
    assert sorted(later, key=lambda loss: loss.low) == later == sorted(later, key=lambda loss: loss.high)


def test_nobody_loses_more_than_all() -> None:
    """A dead student has a divergence of several nats."""
    assert LAW.loss(9.0) == LAW.loss(1.0) == ExpectedLoss(100.0, 49.3, 100.0)
    assert LAW.needed(9.0, 49.3) == pytest.approx(LAW.spread)


@pytest.mark.parametrize("error", [0.003, 0.07])
def test_the_ends_of_the_range_need_the_spread(error: float) -> None:
    """A loss at either end needs the spread of the law, one in between less, and one beyond more."""
    found = LAW.loss(error)
    for end, beyond in ((found.low, found.low - 0.1), (found.high, found.high + 0.1)):
        assert LAW.needed(error, end) == pytest.approx(LAW.spread)
        assert LAW.needed(error, beyond) > LAW.spread
        assert LAW.needed(error, (end + found.points) / 2) < LAW.spread


@pytest.mark.parametrize(("error", "loss"), [(0.0, 0.8), (0.01, -0.7), (0.01, -3.0)])
def test_no_range_holds_what_chance_does_not_explain(error: float, loss: float) -> None:
    """A loss without an error, and gains of more than chance."""
    assert LAW.needed(error, loss) == math.inf


def test_chance_needs_no_spread() -> None:
    """A loss within chance of the estimate."""
    assert LAW.needed(0.0, 0.6) == LAW.needed(0.0, -0.6) == LAW.needed(0.02, 1.4) == 1.0


def test_the_error_is_relative_to_the_variance_of_the_logits() -> None:
    """Four times the divergence at twice the spread is the same error."""
    assert relative_error(4 * 0.01, 2 * 1.5) == pytest.approx(relative_error(0.01, 1.5))


def test_the_student_that_was_kept_is_judged() -> None:
    """By the numbers of the package."""
    assert expected_loss(selection(0.04, 2.0)) == FITTED.loss(0.01)


@pytest.mark.parametrize(("divergence", "spread"), [(0.04, None), (math.nan, 2.0), (0.04, 0.0)])
def test_runs_without_usable_figures_have_no_estimate(divergence: float, spread: float | None) -> None:
    """Without scenes that judge or classes (no spread), without a divergence, and with logits that are all the same."""
    assert expected_loss(selection(divergence, spread)) is None
