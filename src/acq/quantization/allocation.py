"""Bit allocation: choose each layer's weight bits for a given mean, more where the logits are more sensitive.

The cost of a layer is this project's definition.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.quantization.calibration import weight_scale
from acq.quantization.formats import REDUCED_BITS, WIDTHS
from acq.quantization.layers import QuantLayer
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.student import Student, quantizers_off


@dataclass(frozen=True)
class Cost:
    """The cost of a layer at each bit-width.

    Attributes:
        layer: The layer's public name.
        weights: Number of weights.
        noise: Squared error of the logits by bit-width, summed over images, when only this layer's weights are rounded.
    """

    layer: str
    weights: int
    noise: Mapping[int, float]


@torch.no_grad()
def costs(student: Student, batches: Sequence[Tensor], layers: Container[str]) -> list[Cost]:
    """Measure the cost of layers with one forward pass per layer and batch.

    Each layer is measured at the width that the student has, or at the next lower width that changes its weights. At
    other widths the error is assumed to grow as the squared error of the weights does.

    Args:
        student: The student; it is the same afterwards.
        batches: Images [N, C, H, W].
        layers: Public names of the layers to measure.

    Returns:
        One cost per layer, in order of execution.
    """
    found = []
    widest = REDUCED_BITS if student.plan.format.reduce_range else WIDTHS[-1]
    with evaluating(student), quantizers_off(student):
        reference = [student.logits(batch) for batch in batches]
        for name, layer in student.layers():
            if name not in layers:
                continue
            weight = layer.weight.detach().clone()
            rounded = {width: _rounded(layer, min(width, widest)) for width in WIDTHS}
            errors = {width: (there - weight).double().square().sum().item() for width, there in rounded.items()}
            measured = next((width for width in range(layer.weight_quantizer.bits, 1, -1) if errors[width]), WIDTHS[0])
            layer.weight.copy_(rounded[measured])
            pairs = zip(batches, reference, strict=True)
            noise = sum((student.logits(x) - y).double().square().sum().item() for x, y in pairs)
            layer.weight.copy_(weight)
            unit = noise / errors[measured] if errors[measured] else 0.0
            found.append(Cost(name, weight.numel(), {width: unit * error for width, error in errors.items()}))
    return found


def allocate(costs: Sequence[Cost], mean: float) -> dict[str, int]:
    """Choose bit-widths with a low total cost and at most the given mean over all weights.

    All layers begin with 2 bits. Then the widening with the largest gain per stored bit is applied as long as one
    fits. For convex costs this is optimal except for what the last widening leaves over (Everett, Operations Research
    1963).

    Args:
        costs: The layers' costs.
        mean: Mean bits per weight.

    Returns:
        Bits from 2 to 8 by layer.

    Raises:
        ValueError: ``mean`` is below 2.
    """
    if mean < WIDTHS[0]:
        raise ValueError(f"a mean of {mean} bits is below {WIDTHS[0]}")
    widths = {cost.layer: WIDTHS[0] for cost in costs}
    room = (mean - WIDTHS[0]) * sum(cost.weights for cost in costs)
    while True:
        steps = [
            ((cost.noise[here] - cost.noise[there]) / stored, stored, cost.layer, there)
            for cost in costs
            for here in (widths[cost.layer],)
            for there in range(here + 1, WIDTHS[-1] + 1)
            for stored in (cost.weights * (there - here),)
            if stored <= room and cost.noise[there] < cost.noise[here]
        ]
        if not steps:
            return widths
        _, stored, layer, width = max(steps)
        widths[layer] = width
        room -= stored


def _rounded(layer: QuantLayer, bits: int) -> Tensor:
    """The layer's weights rounded to a width."""
    power_of_two_scales = layer.weight_quantizer.power_of_two_scales
    quantizer = WeightQuantizer(len(layer.weight), bits, power_of_two_scales=power_of_two_scales)
    quantizer.to(layer.weight.device)
    quantizer.set_qparams(weight_scale(layer.weight, quantizer))
    rounded: Tensor = quantizer(layer.weight)
    return rounded
