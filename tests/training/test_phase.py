from __future__ import annotations

import pytest
import torch
from small_runs import training_

from acq.training.phase import REPORT_EVERY, StepResult, is_reported


def test_losses_are_reported_now_and_then_and_at_the_end() -> None:
    """Every tenth step is reported, and the last one of a phase."""
    assert [number for number in range(25) if is_reported(number, 25)] == [9, 19, 24]
    assert is_reported(0, 1)
    assert REPORT_EVERY == 10


def test_a_step_has_no_fault_unless_it_says_so() -> None:
    """Losses alone are a good result."""
    assert StepResult({"loss": torch.zeros(())}).fault is None


def test_phases_of_a_run_have_names_of_their_own() -> None:
    """The names are keys of checkpoints and logs, so they are fixed and in order."""
    phases = training_().phases
    assert list(phases) == ["first", "generator", "images", "calibration", "student", "conversion"]
    assert all(phase.name == name for name, phase in phases.items())


@pytest.mark.parametrize("name", ["first", "generator", "images", "calibration", "student", "conversion"])
def test_a_phase_is_restored_before_its_first_step(name: str) -> None:
    """The state of a phase that has not begun can be restored into another one."""
    state = training_().phases[name].state()
    other = training_().phases[name]
    other.restore(state)
    assert other.state().keys() == state.keys()
