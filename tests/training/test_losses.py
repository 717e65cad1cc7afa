from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.training.losses import feature_match, logit_match, probability_match, total

Formula = Callable[[Tensor, Tensor], Tensor]
FORMULAS: list[Formula] = [logit_match, probability_match, feature_match]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_student_like_its_teacher_has_nothing_to_learn(formula: Formula) -> None:
    """Each formula is zero for equal values and positive for others."""
    teacher = torch.randn(6, 5)
    assert formula(teacher, teacher).abs() < 1e-6
    assert formula(teacher + 0.5 * torch.randn(6, 5), teacher) > 0


@pytest.mark.parametrize("formula", [logit_match, probability_match])
@given(seed=st.integers(0, 99), shift=st.floats(-20, 20))
def test_a_constant_on_all_scores_means_nothing(formula: Formula, seed: int, shift: float) -> None:
    """Adding a number to every class of the student's logits costs nothing."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=rng)
    torch.testing.assert_close(formula(student + shift, teacher), formula(student, teacher), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("formula", [logit_match, feature_match])
@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_a_match_does_not_depend_on_units(formula: Formula, seed: int, factor: float) -> None:
    """Both values scaled alike cost the same, so that a weight means the same for every network."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=rng)
    torch.testing.assert_close(
        formula(factor * student, factor * teacher), formula(student, teacher), rtol=1e-3, atol=0
    )


def test_silence_costs_one() -> None:
    """A student that says nothing at all errs by as much as the teacher says."""
    for formula in (logit_match, feature_match):
        torch.testing.assert_close(formula(torch.zeros(6, 5), torch.randn(6, 5)), torch.tensor(1.0))


def test_features_of_any_shape_are_compared() -> None:
    """Equals the quotient of squared norms, of feature maps as of vectors."""
    student, teacher = torch.randn(2, 4, 3, 5, 5)
    expected = (student - teacher).norm() ** 2 / teacher.norm() ** 2
    torch.testing.assert_close(feature_match(student, teacher), expected)


def test_a_silent_teacher_is_finite() -> None:
    """Features that are zero everywhere divide nothing by zero."""
    student = torch.zeros(2, 3, requires_grad=True)
    value = feature_match(student, torch.zeros(2, 3))
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_probabilities_match_by_divergence() -> None:
    """Equals the sum of p log(p / q) written out, a mean over images."""
    student, teacher = torch.randn(2, 6, 5)
    p, q = teacher.softmax(1), student.softmax(1)
    torch.testing.assert_close(probability_match(student, teacher), (p * (p / q).log()).sum(1).mean())


def test_logits_match_is_the_limit_of_a_high_temperature() -> None:
    """Divergence at a temperature of 1,000, in units of the teacher's own, nears the match of logits."""
    student, teacher = torch.randn(2, 6, 5, dtype=torch.double)
    temperature = 1000
    divergence = F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    centred = teacher - teacher.mean(1, keepdim=True)
    relative = divergence * temperature**2 * 2 * 5 * 6 / centred.square().sum()
    torch.testing.assert_close(logit_match(student, teacher), relative, rtol=1e-2, atol=0)


def test_the_total_is_the_weighted_sum() -> None:
    """Weights are taken by name."""
    parts = {"logits": torch.tensor(0.5), "features": torch.tensor(2.0)}
    assert total(parts, {"logits": 4.0, "features": 0.25, "probabilities": 9.0}) == 2.5
