"""Losses of images. Each is a formula of a :class:`acq.core.values.GeneratorBatch`: no weight, no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.pixels import denormalise
from acq.core.values import GeneratorBatch, Moments, TeacherOutput
from acq.network.features import pooled

Loss = Callable[[GeneratorBatch], Tensor]
LOSSES: dict[str, Loss] = {}

_LEAST_ENERGY = 1e-12  # keeps a relative distance of two zero vectors finite
_CONTRAST = 0.25  # of the range from black to white
_SILENT = 0.01  # of a layer's mean variance: the unit of a channel that never fires


def loss(name: str) -> Callable[[Loss], Loss]:
    """Register a loss under ``name``, the key of its weight in the settings."""

    def register(formula: Loss) -> Loss:
        LOSSES[name] = formula
        return formula

    return register


def total(batch: GeneratorBatch, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all losses whose weight is not 0.

    Args:
        batch: Images and teacher outputs.
        weights: Weight by name of the loss.

    Returns:
        The sum [], and each loss [] without its weight.
    """
    losses = {name: LOSSES[name](batch) for name, weight in weights.items() if weight}
    return weighted_sum(losses, weights), losses


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum [] of losses [], by name."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


@loss("classes")
def class_match(batch: GeneratorBatch) -> Tensor:
    """Cross entropy of the teacher's answers and the requested ones (GDFQ, Xu et al. 2020, eq. 3)."""
    return batch.output.mismatch(batch.eval_output.logits, batch.condition.label)


@loss("statistics")
def statistics_match(batch: GeneratorBatch) -> Tensor:
    """Distance of batch-norm input moments from the stored ones, in units of the stored standard deviation.

    The mean over layers and channels of ((m - m')^2 + (s - s')^2) / s'^2. Here m and s are the mean and standard
    deviation of the images, m' and s' the stored ones. This is this project's definition: without the division, wide
    layers and large channels dominate.
    """
    pairs = zip(batch.eval_output.moments, batch.stored_moments, strict=True)
    return torch.stack([_moments_distance(found, stored) for found, stored in pairs]).mean()


@loss("statistics_plain")
def plain_statistics_match(batch: GeneratorBatch) -> Tensor:
    """Mean squared differences of means and of variances, averaged over layers (GDFQ, eq. 4)."""
    pairs = zip(batch.eval_output.moments, batch.stored_moments, strict=True)
    return torch.stack(
        [F.mse_loss(found.mean, stored.mean) + F.mse_loss(found.var, stored.var) for found, stored in pairs]
    ).mean()


@loss("centre")
def centre_match(batch: GeneratorBatch) -> Tensor:
    """Squared distance of realised and requested attention centre, mean over images and axes (ACQ, centre matching)."""
    return F.mse_loss(batch.eval_output.centre, batch.condition.centre)


@loss("paired")
def paired_adversary(batch: GeneratorBatch) -> Tensor:
    """Reward pairs that differ as much as their noise: the mean of exp(-d(features) / d(noise)).

    ``d`` is ``relative_distance``; the features are the teacher's pooled features and its attention map. The value lies
    in (0, 1], so it cannot outweigh the other losses. ACQ's abstract asks for an adversarial loss on pairs of one
    condition; the formula is this project's definition.
    """
    here, there = _pair_features(batch.eval_output).chunk(2)
    noise, other = batch.condition.noise.chunk(2)
    return torch.exp(-relative_distance(here, there) / relative_distance(noise, other)).mean()


@loss("consistency")
def consistency(batch: GeneratorBatch) -> Tensor:
    """Difference of the teacher's attention and logits between running and batch statistics.

    The mean of d(attention, attention') + d(logits, logits') with ``relative_distance``; logits of classes are centred
    (ACQ, consistency penalty; the formula is this project's definition).

    Raises:
        ValueError: The batch has no output with batch statistics.
    """
    if batch.train_output is None:
        raise ValueError("the consistency loss needs a teacher output with batch statistics")
    first, second = batch.eval_output, batch.train_output
    attention = relative_distance(first.attention.flatten(1), second.attention.flatten(1))
    here, there = (batch.output.centred(read.logits) for read in (first, second))
    return (attention + relative_distance(here, there)).mean()


@loss("smoothness")
def smoothness(batch: GeneratorBatch) -> Tensor:
    """Mean squared difference of neighbouring pixels, in quarters of the range from black to white.

    A quarter is about the standard deviation of a photograph. The value does not depend on the normalisation. Where no
    statistics are stored, it keeps the class loss from painting noise.
    """
    pixels = denormalise(batch.images, batch.preprocessing) / _CONTRAST
    return torch.stack([pixels.diff(dim=axis).square().mean() for axis in (2, 3)]).mean()


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 / (|a|^2 + |b|^2) per row: [N, D], [N, D] -> [N]."""
    energy = a.square().sum(1) + b.square().sum(1)
    return (a - b).square().sum(1) / energy.clamp_min(_LEAST_ENERGY)


def unit_variance(var: Tensor) -> Tensor:
    """The squared unit of a layer's channels [C], from their stored variances [C].

    A channel that never fires has variance 0; a hundredth of the layer's mean keeps the quotient finite.
    """
    return var + _SILENT * var.mean() + 1e-12


def _pair_features(output: TeacherOutput) -> Tensor:
    """Pooled features [N, C] and attention [N, H * W], each of unit length, side by side."""
    return torch.cat((F.normalize(pooled(output.features)), F.normalize(output.attention.flatten(1))), 1)


def _moments_distance(found: Moments, stored: Moments) -> Tensor:
    mean = (found.mean - stored.mean).square()
    deviation = ((found.var + 1e-12).sqrt() - (stored.var + 1e-12).sqrt()).square()
    return ((mean + deviation) / unit_variance(stored.var)).mean()
