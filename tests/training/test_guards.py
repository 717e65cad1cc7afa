from __future__ import annotations

import math

import pytest
import torch
from helpers import student_of

from acq.core.outputs import Output
from acq.core.values import TeacherOutput
from acq.training.guards import CollapseDetector, RangeGuard, nonfinite_losses

THREE = Output.of("class", 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_the_others(value: float) -> None:
    """The text has all losses; there is none where all are finite, or where there are no losses."""
    losses = {"classes": torch.tensor(0.5), "centre": torch.tensor(value)}
    assert nonfinite_losses(losses) == f"losses classes 0.5, centre {value:.3g}"
    assert nonfinite_losses({"classes": torch.tensor(1e30)}) is None
    assert nonfinite_losses({}) is None


@pytest.mark.parametrize("place", ["middle.0.relu_quantizer", "stem.0.weight_quantizer"])
@pytest.mark.parametrize(
    ("factor", "is_fault"), [(1.0, False), (3.9, False), (4.1, True), (1 / 4.1, True), (math.nan, True)]
)
def test_a_range_that_explodes_is_named(place: str, factor: float, is_fault: bool) -> None:
    """A change by more than four times in either direction is a fault, of weights as of activations."""
    student = student_of("residual")
    guard = RangeGuard(student)
    guard.remember()
    with torch.no_grad():
        student.get_parameter(f"{place}.log_scale").add_(math.log(factor))
    fault = guard.fault()
    assert (fault is not None) == is_fault
    assert fault is None or fault.startswith(f"the range of {place} changed by a factor of ")


def test_the_reference_is_a_snapshot_that_can_be_taken_again() -> None:
    """Changes add up until the present ranges are remembered anew."""
    student = student_of("residual")
    guard, scale = RangeGuard(student), student.get_parameter("stem.0.weight_quantizer.log_scale")
    guard.remember()
    for fault_expected in (False, True):
        with torch.no_grad():
            scale.add_(math.log(2.5))
        assert (guard.fault() is not None) == fault_expected
    guard.remember()
    assert guard.fault() is None


def batch(right: float, spread: float, requested: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, TeacherOutput]:
    """A hundred images, of which a share shows the requested class, and whose centres have a share of the deviation."""
    label = torch.zeros(100, dtype=torch.long)
    logits = torch.zeros(100, 3)
    logits[torch.arange(100) >= right * 100, 1] = 1
    centre = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    return label, requested * centre, TeacherOutput(logits, torch.zeros(0), torch.zeros(0), centre * spread, ())


@pytest.mark.parametrize(("name", "fallen"), [("labels", (0.1, 1.0)), ("centres", (0.9, 0.1))])
def test_a_generator_that_collapses_is_reported(name: str, fallen: tuple[float, float]) -> None:
    """Labels or centres that fall away, once labels were right, are named within twenty steps."""
    detector = CollapseDetector(THREE)
    assert [detector.fault(*batch(0.9, 1.0)) for _ in range(40)] == [None] * 40
    found = [detector.fault(*batch(*fallen)) for _ in range(20)]
    first = next(fault for fault in found if fault is not None)
    assert first.startswith(f"{name} fell from ")


def test_a_generator_that_has_not_learned_yet_cannot_collapse() -> None:
    """Centres may do anything until half of the labels are right."""
    detector = CollapseDetector(THREE)
    steps = [(0.1, 2.0)] * 30 + [(0.1, 0.01)] * 30 + [(0.4, 0.3)] * 30
    assert [detector.fault(*batch(*step)) for step in steps] == [None] * 90


def test_centres_that_all_ask_for_the_middle_are_no_collapse() -> None:
    """Where no spread is requested, none is missed."""
    detector = CollapseDetector(THREE)
    assert [detector.fault(*batch(0.9, 1.0, requested=0.0)) for _ in range(40)] == [None] * 40


def test_a_detector_is_restored() -> None:
    """Another detector with the same state sees the same, and the state is a snapshot."""
    first, second = CollapseDetector(THREE), CollapseDetector(THREE)
    for _ in range(30):
        first.fault(*batch(0.9, 1.0))
    state = first.state()
    second.restore(state)
    faults = [[detector.fault(*batch(0.0, 1.0)) for _ in range(15)] for detector in (first, second)]
    assert faults[0] == faults[1]
    assert first.state() == second.state() != state
