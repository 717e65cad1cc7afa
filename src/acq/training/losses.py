"""Losses of the student: formulas of its own and the teacher's values for the same images.

All are relative to the size of the teacher's values, so a weight means the same for every network. This is this
project's definition; the effective weights of published losses differ by four orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.outputs import Output


def logit_match(student: Tensor, teacher: Tensor, output: Output) -> Tensor:
    """|zs - zt|^2 / |zt|^2 over a batch of logits [N, K], both centred over classes if they are those of classes.

    This is the high-temperature limit of distillation by KL divergence (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    return feature_match(output.centred(student), output.centred(teacher))


def probability_match(student: Tensor, teacher: Tensor, output: Output) -> Tensor:
    """KL divergence in nats of the student's probabilities from the teacher's, mean over images [N, K].

    That of labels is the sum over labels.
    """
    answers, reference = map(output.log_probabilities, (student, teacher))
    return F.kl_div(answers, reference, reduction="batchmean", log_target=True)


def feature_match(student: Tensor, teacher: Tensor) -> Tensor:
    """|fs - ft|^2 / |ft|^2 over a batch of features of any shape."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def student_losses(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], weights: Mapping[str, float], output: Output
) -> dict[str, Tensor]:
    """The losses that have a weight, by name.

    Args:
        student: Logits [N, K] and features.
        teacher: Logits [N, K] and features.
        weights: Weight by name; 0 leaves a loss out.
        output: How the logits decide.
    """
    formulas = {
        "logits": lambda: logit_match(student[0], teacher[0], output),
        "probabilities": lambda: probability_match(student[0], teacher[0], output),
        "features": lambda: feature_match(student[1], teacher[1]),
    }
    return {name: formulas[name]() for name, weight in weights.items() if weight}


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of losses."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()
