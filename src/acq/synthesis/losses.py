"""What the generator learns from. Each loss is a formula of a :class:`acq.core.values.Step`: no weight, no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.values import GeneratorBatch, Moments, TeacherOutput

Loss = Callable[[GeneratorBatch], Tensor]
LOSSES: dict[str, Loss] = {}


def loss(name: str) -> Callable[[Loss], Loss]:
    """Register a loss under ``name``, by which a config weighs it."""

    def register(formula: Loss) -> Loss:
        LOSSES[name] = formula
        return formula

    return register


def total(step: GeneratorBatch, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses whose weight is not zero, and each one unweighted."""
    parts = {name: LOSSES[name](step) for name, weight in weights.items() if weight}
    return torch.stack([weights[name] * value for name, value in parts.items()]).sum(), parts


@loss("classes")
def class_match(step: GeneratorBatch) -> Tensor:
    """Cross entropy of the teacher's logits against the requested labels (GDFQ, Xu et al. 2020, eq. 3)."""
    return F.cross_entropy(step.eval_output.logits, step.condition.label)


@loss("statistics")
def statistics_match(step: GeneratorBatch) -> Tensor:
    """Batch-norm input moments of the images against the stored ones, in units of the stored deviation.

    mean over layers and channels of ((m - m')^2 + (s - s')^2) / s'^2, with m, s the images' mean and standard
    deviation and m', s' the stored ones (this project's definition: GDFQ's squares without the division let wide
    layers and loud channels decide).
    """
    pairs = zip(step.eval_output.moments, step.stored_moments, strict=True)
    return torch.stack([_relative_distance(found, stored_moments) for found, stored_moments in pairs]).mean()


@loss("statistics_plain")
def plain_statistics_match(step: GeneratorBatch) -> Tensor:
    """Mean squared differences of means and of variances, averaged over layers (GDFQ, eq. 4)."""
    pairs = zip(step.eval_output.moments, step.stored_moments, strict=True)
    return torch.stack(
        [
            F.mse_loss(found.mean, stored_moments.mean) + F.mse_loss(found.var, stored_moments.var)
            for found, stored_moments in pairs
        ]
    ).mean()


@loss("centre")
def centre_match(step: GeneratorBatch) -> Tensor:
    """Squared distance from the realised attention centre to the requested one, mean over images and axes."""
    return F.mse_loss(step.eval_output.centre, step.condition.centre)


@loss("paired")
def paired_adversary(step: GeneratorBatch) -> Tensor:
    """Images of one condition must differ as much as their noise does: mean of exp(-d(features) / d(noise)).

    d(a, b) = |a - b|^2 / (|a|^2 + |b|^2), the features being the teacher's pooled ones and its attention map side by
    side. In (0, 1], so it cannot outweigh the other losses (this project's definition; the paper's abstract asks
    for an adversarial loss on pairs of one condition).
    """
    here, there = _pair_features(step.eval_output).chunk(2)
    noise, other = step.condition.noise.chunk(2)
    return torch.exp(-_relative(here, there) / _relative(noise, other)).mean()


@loss("consistency")
def consistency(step: GeneratorBatch) -> Tensor:
    """Attention and logits must not change when the teacher normalises by batch instead of running statistics.

    Mean of d(attention, attention') + d(logits, logits') with the relative distance of the paired loss, logits
    centred over classes (this project's definition).
    """
    if step.train_output is None:
        raise ValueError("the consistency loss needs a reading with batch statistics")
    first, second = step.eval_output, step.train_output
    attention = _relative(first.attention.flatten(1), second.attention.flatten(1))
    return (attention + _relative(_centred(first.logits), _centred(second.logits))).mean()


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 / (|a|^2 + |b|^2) for each row: [N, D], [N, D] -> [N]."""
    energy = a.square().sum(1) + b.square().sum(1)
    return (a - b).square().sum(1) / energy.clamp_min(1e-12)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _pair_features(reading: TeacherOutput) -> Tensor:
    """Pooled features [N, C] and attention [N, H * W], each of unit length: what the pair should differ in."""
    pooled = F.normalize(reading.features.mean((2, 3)))
    return torch.cat((pooled, F.normalize(reading.attention.flatten(1))), 1)


def unit_variance(var: Tensor) -> Tensor:
    """The squared unit in which a layer's channels are compared, from their stored variances [C].

    A channel that never fires has no deviation of its own: a hundredth of its layer's keeps the quotient finite.
    """
    return var + 0.01 * var.mean() + 1e-12


def _relative_distance(found: Moments, stored_moments: Moments) -> Tensor:
    scale = unit_variance(stored_moments.var)
    mean = (found.mean - stored_moments.mean).square()
    deviation = ((found.var + 1e-12).sqrt() - (stored_moments.var + 1e-12).sqrt()).square()
    return ((mean + deviation) / scale).mean()
