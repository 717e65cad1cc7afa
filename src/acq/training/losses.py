"""What the student learns from: formulas of its own and the teacher's values on the same images.

All are relative to the teacher's own size, so that a weight means the same for every network (this project's
definition; the published ones differ by four orders of magnitude in effective weight).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def logit_match(student: Tensor, teacher: Tensor) -> Tensor:
    """|zs - zt|^2 / |zt|^2 over a batch of logits [N, K], both centred over classes.

    The high-temperature limit of distillation by KL divergence (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    reference = teacher - teacher.mean(1, keepdim=True)
    return feature_match(student - student.mean(1, keepdim=True), reference)


def probability_match(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence in nats from the teacher's to the student's class probabilities, mean over images."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def feature_match(student: Tensor, teacher: Tensor) -> Tensor:
    """|fs - ft|^2 / |ft|^2 over a batch of features of any shape."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def parts(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The losses that have a weight, by name; ``student`` and ``teacher`` are logits [N, K] and features of a batch."""
    formulas = {
        "logits": lambda: logit_match(student[0], teacher[0]),
        "probabilities": lambda: probability_match(student[0], teacher[0]),
        "features": lambda: feature_match(student[1], teacher[1]),
    }
    return {name: formulas[name]() for name, weight in weights.items() if weight}


def total(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the parts."""
    return torch.stack([weights[name] * value for name, value in parts.items()]).sum()
