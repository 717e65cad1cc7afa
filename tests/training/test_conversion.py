from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from small_runs import assert_same, run_until, training_
from torch import Tensor

from acq.quantization.student import Student
from acq.training.conversion import Conversion
from acq.training.loop import Training

State = dict[str, Tensor]


@cache
def calibrated() -> dict[str, Any]:
    """The state of a run whose student is calibrated, and whose images are as generated."""
    training = before_conversion()
    run_until(training, "calibration")
    return training.state()


def before_conversion(**calibration: bool) -> Training:
    settings = {"rounding": False, "equalization": False, "first_student": False, **calibration}
    return training_(generator={"steps": 1}, images={"steps": 0}, calibration=settings)


def phase_(*candidates: Callable[[State], State]) -> Conversion:
    """A conversion of the calibrated student and of others that are made from it."""
    training = before_conversion()
    training.restore(calibrated())
    context = training.context
    for number, made in enumerate(candidates):
        context.candidates[f"made{number}"] = made(copy.deepcopy(context.candidates["calibrated"]))
    phase = training.phases["conversion"]
    assert isinstance(phase, Conversion)
    return phase


def noisy(scale: float) -> Callable[[State], State]:
    """Add noise to the weights, in units of each tensor's deviation."""

    def changed(state: State) -> State:
        rng = torch.Generator().manual_seed(0)
        for name, value in state.items():
            if name.endswith("weight"):
                value += scale * value.std() * torch.randn(value.shape, generator=rng)
        return state

    return changed


def broken(state: State) -> State:
    next(value for name, value in state.items() if name.endswith("weight")).fill_(torch.nan)
    return state


@pytest.fixture(scope="module")
def untrained() -> Conversion:
    """The conversion of a run that trains no student."""
    phase = phase_()
    phase.step(0, 1.0)
    return phase


def student(phase: Conversion) -> Student:
    return phase.context.student


@pytest.mark.parametrize("ruined", [noisy(3.0), broken])
def test_a_candidate_that_training_ruined_is_not_kept(ruined: Callable[[State], State], untrained: Conversion) -> None:
    """The run ends with the student of a run that trains nothing, bit for bit, and says so."""
    phase = phase_(ruined)
    with pytest.warns(UserWarning, match="training made the student worse.* the calibrated student is kept"):
        phase.step(0, 1.0)
    assert_same(student(phase).state_dict(), student(untrained).state_dict())
    found = phase.context.selection
    assert found.selected == "calibrated"
    assert not found.candidates["made0"].loss < 2 * found.candidates["calibrated"].loss
    assert found.final == untrained.context.selection.final


def test_a_candidate_that_training_improved_is_kept(untrained: Conversion) -> None:
    """It is converted without a warning."""
    phase = phase_(noisy(0.0))
    candidates = phase.context.candidates
    candidates["calibrated"] = noisy(1.0)(copy.deepcopy(candidates["calibrated"]))
    phase.step(0, 1.0)
    assert phase.context.selection.selected == "made0"
    assert_same(student(phase).state_dict(), student(untrained).state_dict())


def test_an_equal_candidate_replaces_none() -> None:
    """A later student must be better. It is no fault if it is not, so there is no warning."""
    phase = phase_(noisy(0.0))
    phase.step(0, 1.0)
    assert phase.context.selection.selected == "calibrated"


@pytest.mark.parametrize(("noise", "selected"), [((2.0, 0.5, 0.0), "made2"), ((2.0, 0.0, 3.0), "made1")])
def test_any_number_of_candidates_is_compared(noise: tuple[float, ...], selected: str) -> None:
    """Phases may add candidates; all are measured in order of training, and the best one is kept."""
    phase = phase_(*map(noisy, noise))
    candidates = phase.context.candidates
    candidates["calibrated"] = noisy(4.0)(copy.deepcopy(candidates["calibrated"]))
    phase.step(0, 1.0)
    found = phase.context.selection
    assert list(found.candidates) == ["calibrated", "made0", "made1", "made2"]
    assert found.selected == selected


def test_a_run_ends_no_worse_than_its_first_student() -> None:
    """The first student is kept where finished images ruin the later ones. New scenes judge too."""
    training = before_conversion(first_student=True)
    run_until(training, "calibration")
    context, phase = training.context, training.phases["conversion"]
    first = copy.deepcopy(context.candidates["first"])
    context.candidates["calibrated"] = noisy(3.0)(context.candidates["calibrated"])
    phase.step(0, 1.0)
    found = context.selection
    assert found.selected == "first"
    assert found.final.loss < found.candidates["calibrated"].loss
    kept = phase_()
    kept.context.candidates = {"calibrated": first}
    kept.step(0, 1.0)
    assert kept.context.selection.final == found.final  # on augmented images alone
    assert kept.context.selection.candidates["calibrated"] != found.candidates["first"]


def test_the_verdict_draws_no_random_number(untrained: Conversion) -> None:
    """Candidates are judged on the same augmented images in every run, whatever the random state of the run."""
    phase = phase_()
    torch.randn(5, generator=phase.context.rng)
    before = phase.context.rng.get_state()
    phase.step(0, 1.0)
    assert phase.context.selection == untrained.context.selection
    assert torch.equal(phase.context.rng.get_state(), before)


def test_candidates_are_dropped_after_the_verdict(untrained: Conversion) -> None:
    """The selected one is the student, so checkpoints need no copies."""
    assert untrained.context.candidates == {}
    assert untrained.state() == {}


def test_the_converted_student_is_measured(untrained: Conversion) -> None:
    """What integer kernels compute has a quality of its own, near that of the candidate."""
    found = untrained.context.selection
    before = phase_().context.candidates["calibrated"]
    assert any(not torch.equal(value, before[name]) for name, value in student(untrained).state_dict().items())
    assert found.final.loss == pytest.approx(found.candidates["calibrated"].loss, rel=0.3)
    assert 0 < found.majority_share <= 100
