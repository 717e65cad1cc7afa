from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.synthesis.losses import weighted_sum
from acq.training import losses
from acq.training.losses import feature_match, student_losses

Formula = Callable[[Tensor, Tensor], Tensor]
logit_match: Formula = partial(losses.logit_match, output=CLASSES)
probability_match: Formula = partial(losses.probability_match, output=CLASSES)
FORMULAS: list[Formula] = [logit_match, probability_match, feature_match]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_student_like_its_teacher_has_no_loss(formula: Formula) -> None:
    """Each formula is zero for equal values and positive for others."""
    teacher = torch.randn(6, 5)
    assert formula(teacher, teacher).abs() < 1e-6
    assert formula(teacher + 0.5 * torch.randn(6, 5), teacher) > 0


@pytest.mark.parametrize("formula", [logit_match, probability_match])
@given(seed=st.integers(0, 99), shift=st.floats(-20, 20))
def test_a_constant_on_all_logits_means_nothing(formula: Formula, seed: int, shift: float) -> None:
    """Adding a number to every class of the student's logits changes no loss."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=rng)
    torch.testing.assert_close(formula(student + shift, teacher), formula(student, teacher), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("formula", [logit_match, feature_match])
@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_a_match_does_not_depend_on_units(formula: Formula, seed: int, factor: float) -> None:
    """Scaling both values alike changes no loss, so a weight means the same for every network."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=rng)
    torch.testing.assert_close(
        formula(factor * student, factor * teacher), formula(student, teacher), rtol=1e-3, atol=0
    )


def test_zeros_cost_one() -> None:
    """A student whose values are all zero has a loss of one."""
    for formula in (logit_match, feature_match):
        torch.testing.assert_close(formula(torch.zeros(6, 5), torch.randn(6, 5)), torch.tensor(1.0))


def test_features_of_any_shape_are_compared() -> None:
    """The loss is the quotient of squared norms, of feature maps as of vectors."""
    student, teacher = torch.randn(2, 4, 3, 5, 5)
    expected = (student - teacher).norm() ** 2 / teacher.norm() ** 2
    torch.testing.assert_close(feature_match(student, teacher), expected)


def test_features_that_are_zero_everywhere_are_finite() -> None:
    """A teacher without any value divides nothing by zero."""
    student = torch.zeros(2, 3, requires_grad=True)
    value = feature_match(student, torch.zeros(2, 3))
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_probabilities_match_by_divergence() -> None:
    """The loss is the sum of p log(p / q) written out, mean over images."""
    student, teacher = torch.randn(2, 6, 5)
    p, q = teacher.softmax(1), student.softmax(1)
    torch.testing.assert_close(probability_match(student, teacher), (p * (p / q).log()).sum(1).mean())


def test_logits_match_is_the_limit_of_a_high_temperature() -> None:
    """Divergence at a temperature of 1,000, relative to the teacher's logits, is near the match of logits."""
    student, teacher = torch.randn(2, 6, 5, dtype=torch.double)
    temperature = 1000
    divergence = F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    centred = teacher - teacher.mean(1, keepdim=True)
    relative = divergence * temperature**2 * 2 * 5 * 6 / centred.square().sum()
    torch.testing.assert_close(logit_match(student, teacher), relative, rtol=1e-2, atol=0)


def test_losses_are_computed_by_name() -> None:
    """Logits and features enter the formulas of their name, and a weight of zero leaves one out."""
    student, teacher = ((torch.randn(6, 5), torch.randn(6, 3, 2, 2)) for _ in range(2))
    found = student_losses(student, teacher, {"logits": 1.0, "probabilities": 0.1, "features": 2.0}, CLASSES)
    assert found["logits"] == logit_match(student[0], teacher[0])
    assert found["probabilities"] == probability_match(student[0], teacher[0])
    assert found["features"] == feature_match(student[1], teacher[1])
    fewer = student_losses(student, teacher, {"logits": 0.0, "probabilities": 0.0, "features": 2.0}, CLASSES)
    assert fewer == {"features": found["features"]}


def test_the_weighted_sum_takes_weights_by_name() -> None:
    """Weights of losses that are not there do not count."""
    losses = {"logits": torch.tensor(0.5), "features": torch.tensor(2.0)}
    assert weighted_sum(losses, {"logits": 4.0, "features": 0.25, "probabilities": 9.0}) == 2.5
