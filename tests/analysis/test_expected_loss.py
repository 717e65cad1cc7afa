from __future__ import annotations

import math
from dataclasses import replace

import pytest
from helpers import CLASSES
from report.made_run import PLAN

from acq.analysis.expected_loss import FITTED, ExpectedLoss, Law, expected_loss, relative_error
from acq.core.outputs import Output, Traits
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import Plan
from acq.training.distillation import StudentSettings
from acq.training.selection import Selection, StudentQuality

LAW = Law(factor=100.0, spread=2.0)
WEIGHTS = {"logits": 1.0, "probabilities": 0.0, "features": 4.0}


def plan(bits: str, **layers: int) -> Plan:
    """Of two layers, the first with 8-bit weights; ``layers`` may give the second other bits than the format's."""
    parsed = NumberFormat.parse(bits)
    widths = (8, layers.get("second", parsed.weight))
    nodes = tuple(replace(PLAN.nodes[0], weight_bits=width) for width in widths)
    return replace(PLAN, format=parsed, nodes=nodes)


BITS = plan("w4a4")


def selection(loss: float, *, first: str = "first", **weights: float) -> Selection:
    """Candidates of which the last one was kept, with this loss."""
    kept = StudentQuality(loss, 98.0, 0.01)
    return Selection({first: StudentQuality(3.0, 50.0, 9.0), "trained": kept}, "trained", kept, 20.0, WEIGHTS | weights)


def test_the_loss_is_in_proportion_to_the_square_of_the_error() -> None:
    """The range is from half to twice the estimate, and 0.7 points of chance beyond both."""
    found = LAW.loss(0.1)
    assert LAW.loss(0.2).points == pytest.approx(4 * found.points)
    assert found.points == pytest.approx(1.0)
    assert found.high == pytest.approx(2.7)
    assert found.low == pytest.approx(-0.2)


def test_a_student_like_its_teacher_may_lose_or_win_a_little() -> None:
    """The range holds 0 where the error is 0, and both ends rise with the error."""
    found = LAW.loss(0.0)
    assert (found.low, found.points, found.high) == (-0.7, 0.0, 0.7)
    later = [LAW.loss(error) for error in (0.03, 0.1, 0.3)]
    assert sorted(later, key=lambda loss: loss.low) == later == sorted(later, key=lambda loss: loss.high)


def test_nobody_loses_more_than_all() -> None:
    """A dead student has an error of about 1."""
    assert LAW.loss(9.0) == LAW.loss(1.0) == ExpectedLoss(100.0, 49.3, 100.0)
    assert LAW.needed(9.0, 49.3) == pytest.approx(LAW.spread)


@pytest.mark.parametrize("error", [0.05, 0.26])
def test_the_ends_of_the_range_need_the_spread(error: float) -> None:
    """A loss at either end needs the spread of the law, one in between less, and one beyond more."""
    found = LAW.loss(error)
    for end, beyond in ((found.low, found.low - 0.1), (found.high, found.high + 0.1)):
        assert LAW.needed(error, end) == pytest.approx(LAW.spread)
        assert LAW.needed(error, beyond) > LAW.spread
        assert LAW.needed(error, (end + found.points) / 2) < LAW.spread


@pytest.mark.parametrize(("error", "loss"), [(0.0, 0.8), (0.1, -0.7), (0.1, -3.0)])
def test_no_range_holds_what_chance_does_not_explain(error: float, loss: float) -> None:
    """A loss without an error, and gains of more than chance."""
    assert LAW.needed(error, loss) == math.inf


def test_chance_needs_no_spread() -> None:
    """A loss within chance of the estimate."""
    assert LAW.needed(0.0, 0.6) == LAW.needed(0.0, -0.6) == LAW.needed(0.1, 1.4) == 1.0


def test_the_error_is_a_mean_by_weight() -> None:
    """Errors of logits and features count by their weights. Without features the logits' error is left."""
    assert relative_error(1.0 * 0.05 + 4.0 * 0.1, WEIGHTS) == pytest.approx(0.09)
    assert relative_error(0.05, {"logits": 1.0, "features": 0.0}) == pytest.approx(0.05)


def test_the_student_that_was_kept_is_judged() -> None:
    """By the numbers of the package."""
    assert expected_loss(selection(0.5), CLASSES, BITS) == FITTED.loss(0.1)


@pytest.mark.parametrize(
    ("made", "output"),
    [
        (selection(0.5, first="calibrated"), CLASSES),
        (selection(0.5, probabilities=1.0), CLASSES),
        (selection(0.5, features=0.0), CLASSES),
        (selection(0.5, features=1.0), CLASSES),
        (selection(math.nan), CLASSES),
        (selection(0.5), Output.of("values", 5)),
    ],
)
def test_runs_without_usable_figures_have_no_estimate(made: Selection, output: Output) -> None:
    """Without a first student or classes, with a loss of other weights than usual, and with one that is NaN."""
    assert expected_loss(made, output, BITS) is None


@pytest.mark.parametrize(
    ("widths", "known"),
    [
        (plan("w3a3"), True), (plan("w4a8"), True), (plan("w2a4"), False), (plan("w4a2"), False), (plan("w8"), False),
        (plan("w4a8", second=2), False), (plan("wautoa8", second=3), True),
        (replace(plan("w4a4"), placement="relu-only"), False),
    ],
)  # fmt: skip
def test_widths_that_no_run_judged_have_no_estimate(widths: Plan, known: bool) -> None:
    """Two bits in any layer, weights alone, and the placement of papers."""
    assert (expected_loss(selection(0.5), CLASSES, widths) is not None) == known


def test_the_usual_weights_are_those_of_the_law() -> None:
    """A run with default losses has an estimate."""
    weights = StudentSettings().fitted(Traits()).losses.model_dump()
    assert expected_loss(selection(0.5, **weights), CLASSES, BITS) is not None
