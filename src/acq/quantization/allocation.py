"""Bits for each layer's weights where only their mean is given: more where the logits feel rounding more."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.quantization.calibration import weight_scale
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.student import QuantLayer, Student, layer_name_of, quantizers_off

WIDTHS = range(2, 9)


@dataclass(frozen=True)
class Cost:
    """What a layer of ``weights`` numbers costs at each bit-width: the squared error of the logits, summed over images,
    when its weights alone are rounded (this project's definition)."""

    layer: str
    weights: int
    noise: Mapping[int, float]


@torch.no_grad()
def costs(
    student: Student, batches: Sequence[Tensor], layers: Container[str], *, reduce_range: bool = False
) -> list[Cost]:
    """The costs of ``layers``, by node of the plan, in order of execution, on images [N, C, H, W] given in batches.

    Logits are compared at the widths that ``student`` has, or below them where its weights lie on that grid already; at
    others a layer's error is taken to grow as the squared error of its weights does, so that each layer needs one pass.
    ``student`` is left as it was. With ``reduce_range`` 8 bits keep to 7 bits' range and
    bring nothing over 7.
    """
    found = []
    with evaluating(student), quantizers_off(student):
        wanted = [student(batch) for batch in batches]
        for node, module in student.placed():
            name = layer_name_of(node)
            if not isinstance(module, QuantLayer) or name not in layers:
                continue
            weight = module.weight.detach().clone()
            rounded = {width: _rounded(module, min(width, 7) if reduce_range else width) for width in WIDTHS}
            errors = {width: (there - weight).double().square().sum().item() for width, there in rounded.items()}
            # weights that lie on the grid already say nothing at their own width
            at = next((width for width in range(module.weight_quantizer.bits, 1, -1) if errors[width]), WIDTHS[0])
            module.weight.copy_(rounded[at])
            pairs = zip(batches, wanted, strict=True)
            noise = sum((student(x) - y).double().square().sum().item() for x, y in pairs)
            module.weight.copy_(weight)
            unit = noise / errors[at] if errors[at] else 0.0
            found.append(Cost(name, weight.numel(), {width: unit * error for width, error in errors.items()}))
    return found


def allocate(given: Sequence[Cost], mean: float) -> dict[str, int]:
    """Bits of each layer, 2 to 8, whose mean over all weights is at most ``mean`` and whose costs sum to little.

    From 2 bits on, the widening that lowers the sum most for each bit that it stores is taken while one fits; where
    costs are convex this is the optimum but for what the last widening leaves over (Everett, Operations Research 1963).

    Raises:
        ValueError: ``mean`` is below 2.
    """
    if mean < WIDTHS[0]:
        raise ValueError(f"a mean of {mean} bits is below {WIDTHS[0]}")
    widths = {cost.layer: WIDTHS[0] for cost in given}
    room = (mean - WIDTHS[0]) * sum(cost.weights for cost in given)
    while True:
        steps = [
            ((cost.noise[here] - cost.noise[there]) / stored, stored, cost.layer, there)
            for cost in given
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
    """A layer's weights at a width."""
    own = layer.weight_quantizer
    quantizer = WeightQuantizer(len(layer.weight), bits, power_of_two=own.power_of_two).to(layer.weight.device)
    quantizer.set_qparams(weight_scale(layer.weight, quantizer))
    rounded: Tensor = quantizer(layer.weight)
    return rounded
