"""Losses of the student: formulas of its own and the teacher's values for the same images.

All are relative to the size of the teacher's values, so a weight means the same for every network. This is this
project's definition; the effective weights of published losses differ by four orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from acq.core.outputs import Output
from acq.core.scores import relative_error


def logit_match(student: Tensor, teacher: Tensor, output: Output) -> Tensor:
    """The relative squared error of logits [N, L], centred over classes if they are those of classes."""
    return output.apart(student, teacher)


def probability_match(student: Tensor, teacher: Tensor, output: Output) -> Tensor:
    """KL divergence in nats of the student's probabilities from the teacher's, from logits [N, L]."""
    return output.divergence(student, teacher)


def feature_match(student: Tensor, teacher: Tensor) -> Tensor:
    """|fs - ft|^2 / |ft|^2 over a batch of features of any shape."""
    return relative_error(student, teacher)


def student_losses(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], weights: Mapping[str, float], output: Output
) -> dict[str, Tensor]:
    """The losses that have a weight, by name.

    Args:
        student: Logits [N, L] and features.
        teacher: Logits [N, L] and features.
        weights: Weight by name; 0 leaves a loss out.
        output: How the logits decide.
    """
    formulas = {
        "logits": lambda: logit_match(student[0], teacher[0], output),
        "probabilities": lambda: probability_match(student[0], teacher[0], output),
        "features": lambda: feature_match(student[1], teacher[1]),
    }
    return {name: formulas[name]() for name, weight in weights.items() if weight}
