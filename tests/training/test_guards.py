from __future__ import annotations

import math

import pytest
import torch
from helpers import student_of

from acq.core.values import TeacherOutput
from acq.training.guards import Control, changed_range, nonfinite_losses


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told_with_the_others(value: float) -> None:
    """Nothing is where all are finite, or where there are none."""
    parts = {"classes": torch.tensor(0.5), "centre": torch.tensor(value)}
    assert nonfinite_losses(parts) == f"losses classes 0.5, centre {value:.3g}"
    assert nonfinite_losses({"classes": torch.tensor(1e30)}) is None
    assert nonfinite_losses({}) is None


@pytest.mark.parametrize(("factor", "told"), [(3.9, False), (4.1, True), (1 / 4.1, True), (math.nan, True)])
def test_a_range_that_blows_up_is_named(factor: float, told: bool) -> None:
    """By more than four either way, whether of weights or of values."""
    student = student_of("residual")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for name in ("relu_quantizer", next(student.layers())[0] + ".weight_quantizer"):
        now = dict(before)
        now[f"{name}.log_scale"] = now[f"{name}.log_scale"] + math.log(factor)
        found = changed_range(before, now)
        assert (found is not None) == told
        assert found is None or found.startswith(f"the range of {name} changed by a factor of ")


def reading(right: float, spread: float) -> tuple[torch.Tensor, torch.Tensor, TeacherOutput]:
    """A batch whose centres were asked with deviation 1, of which a share is of the class asked for."""
    label, n = torch.zeros(100, dtype=torch.long), 100
    logits = torch.zeros(n, 3)
    logits[torch.arange(n) >= right * n, 1] = 1
    centre = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return label, centre, TeacherOutput(logits, torch.zeros(0), torch.zeros(0), centre * spread, ())


@pytest.mark.parametrize(("name", "fallen"), [("labels", (0.1, 1.0)), ("spread", (0.9, 0.1))])
def test_a_generator_that_collapses_is_told(name: str, fallen: tuple[float, float]) -> None:
    """Labels or spread that fall away, once images were of the class asked for; and within twenty steps."""
    control = Control()
    assert [control.see(*reading(0.9, 1.0)) for _ in range(40)] == [None] * 40
    found = [control.see(*reading(*fallen)) for _ in range(20)]
    first = next(value for value in found if value is not None)
    assert first.startswith(f"{name} fell from ")


def test_a_generator_that_has_not_learned_yet_is_left_alone() -> None:
    """Whatever its spread does."""
    control = Control()
    steps = [(0.1, 2.0)] * 30 + [(0.1, 0.01)] * 30 + [(0.4, 0.3)] * 30
    assert [control.see(*reading(*step)) for step in steps] == [None] * 90


def test_its_state_comes_back() -> None:
    """And then sees the same."""
    first, second = Control(), Control()
    for _ in range(30):
        first.see(*reading(0.9, 1.0))
    second.restore(first.state())
    assert [first.see(*reading(0.0, 1.0)) for _ in range(15)] == [second.see(*reading(0.0, 1.0)) for _ in range(15)]
    assert first.state() == second.state()
