"""Conversion to exact integer arithmetic: small changes to biases and scales so that every engine gives equal logits.

The conversion is this project's definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx

from acq.network.constants import constant
from acq.network.names import name_of
from acq.network.operators import SUBTRACT, Role, operator_of
from acq.quantization.layers import QuantLayer
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student

_MOST_BIAS_UNITS = 2**30  # fits in 32 bits with room for the products
_LARGEST_MOVE = 2**-9  # of a scale: 0.2 %
_FEWEST_TRIES, _MOST_TRIES = 32, 512  # scales tried in each direction
_MOST_TRIED_VALUES = 1 << 25  # values times tries; beyond it the fewest tries are made
_LAYER_MARGIN = 1e-3  # of a step: above every float error of a layer
_ADD_MARGIN = 2e-4  # of a step: twice five roundings by 2^-24 of about 256 steps
_MOST_VALUES = 1 << 20  # with more values, some lie near a tie at every scale
_LEVELS = (Role.MOVE, Role.RECTIFIER, Role.CONCAT, Role.MAXIMUM)  # outputs have levels of the inputs' quantizer


@torch.no_grad()
def convert_to_integers(student: Student) -> None:
    """Make a calibrated student computable in integers, bit for bit.

    Biases become integers in units of their accumulator, which is weight scale times input scale. If a bias needs more
    units than 32 bits hold, as in a channel with almost zero weights, the scale of its weights grows.

    Scales of activations move by up to 0.2 %, so that no value lies halfway between two levels. At a tie the order of a
    sum decides how it rounds, which changes logits of 4-bit networks. This covers accumulators of layers, sums of two
    quantized tensors, maxima of these, and requantized tensors.

    At 8 bits a layer has too many possible sums, and engines may differ by one level. With power-of-two scales nothing
    rounds on the way, so no scale moves. Scales of means, products, concatenations of several quantizers, sums with
    numbers and smooth nonlinearities stay, and so do layers whose input is not quantized.

    Args:
        student: A calibrated student; biases and scales change.
    """
    roles = {node.name: node.role for node in student.plan.nodes}
    quantizers: dict[fx.Node, ActivationQuantizer | None] = {}
    reachable: dict[fx.Node, Values] = {}
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        role = roles.get(name_of(node))
        keeps_levels = role in _LEVELS
        sources = [value for value in node.all_input_nodes if not _only_places(student, value, roles)]
        inputs = [quantizers[source] for source in sources]
        common = inputs[0] if len(set(inputs)) == 1 else None
        if isinstance(module, QuantLayer) and common is not None:
            _round_biases(module, common.scale)
            reachable[node] = _accumulators(module, common)
        elif isinstance(module, ActivationQuantizer) and not module.power_of_two_scales:
            if sources[0] in reachable:
                move_off_ties(module, reachable[sources[0]])
            elif common is not None:  # a requantizer
                move_off_ties(module, _levels(common, module.channel_scale))
        elif role == Role.ADD and len(inputs) == 2:
            first, second = inputs
            if first is not None and second is not None:
                reachable[node] = _sums(first, second, _second_factor(node))
        elif keeps_levels and len(sources) == 1 and sources[0] in reachable:
            reachable[node] = reachable[sources[0]]
        elif role == Role.MAXIMUM and common is None:
            pairs = zip(sources, inputs, strict=True)
            both = [reachable.get(source) if inner is None else _levels(inner, None) for source, inner in pairs]
            if all(both):
                reachable[node] = _together([values for values in both if values])
        own = module if isinstance(module, ActivationQuantizer) else None
        quantizers[node] = own or (common if keeps_levels else None)


def _only_places(student: Student, node: fx.Node, roles: Mapping[str, Role]) -> bool:
    """Whether a node says where values go and has none itself: a shape, or a table of integers."""
    table = constant(student, node)
    return roles.get(name_of(node)) == Role.SHAPE or (table is not None and not table.is_floating_point())


@dataclass(frozen=True)
class Values:
    """The values that a tensor can have: ``start + unit * n`` with integers n from ``low`` to ``high``.

    Attributes:
        start: Float64 [K], one entry per channel or level.
        unit: Float64 [K].
        low: [K].
        high: [K].
        margin: The wanted distance from a tie, in steps of the quantizer.
    """

    start: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor
    margin: float = _LAYER_MARGIN

    def within(self, reach: float) -> Tensor | None:
        """The values from ``-reach`` to ``reach``, sorted [n]; None if they are too many to keep off ties."""
        low = torch.maximum(self.low, ((-reach - self.start) / self.unit).floor())
        high = torch.minimum(self.high, ((reach - self.start) / self.unit).ceil())
        if (high - low + 1).clamp_min(0).sum() > _MOST_VALUES:
            return None
        ranges = zip(low.tolist(), high.tolist(), self.start.tolist(), self.unit.tolist(), strict=True)
        found = [
            start + unit * torch.arange(first, max(last + 1, first), dtype=torch.float64)
            for first, last, start, unit in ranges
        ]
        return torch.cat(found).sort().values


@torch.no_grad()
def move_off_ties(quantizer: ActivationQuantizer, values: Values) -> None:
    """Move a quantizer's scale by up to 0.2 %, so that values stay far from halfway between two levels.

    Scales are tried from the nearest to the farthest. The first one with the wanted margin is taken, otherwise the one
    with the largest margin. If there are too many values, the scale stays.

    Args:
        quantizer: A calibrated quantizer; its scale changes.
        values: The values that it rounds.
    """
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    candidates = values.within(scale * (quantizer.qmax + 1))  # values beyond are clipped
    if candidates is None:
        return
    tries = max(_FEWEST_TRIES, min(_MOST_TRIES, _MOST_TRIED_VALUES // (2 * max(len(candidates), 1))))
    best, chosen = -1.0, scale
    for step in sorted(range(tries, -tries - 1, -1), key=abs):  # the nearest first
        moved = scale * (1 + step * _LARGEST_MOVE / tries)
        bounds = torch.tensor([-zero_point - 1, quantizer.qmax - zero_point + 1], dtype=torch.float64) * moved
        first, last = torch.searchsorted(candidates, bounds).tolist()
        distance = _distance_from_ties(candidates[first:last] / moved)
        if distance > best:
            best, chosen = distance, moved
        if best >= values.margin:
            break
    quantizer.set_qparams(quantizer.scale.new_tensor(chosen), quantizer.zero_point)


def _round_biases(layer: QuantLayer, input_scale: Tensor) -> None:
    """Round a layer's biases to units of its accumulators."""
    if layer.bias is not None:
        weights = layer.weight_quantizer
        weights.set_qparams(torch.maximum(weights.scale, layer.bias.abs() / (input_scale * _MOST_BIAS_UNITS)))
        unit = input_scale * weights.scale
        layer.bias.copy_((layer.bias / unit).round() * unit)


def _accumulators(layer: QuantLayer, inputs: ActivationQuantizer) -> Values:
    """The values of a layer's accumulators, one range per channel."""
    integers = layer.weight_quantizer.integers(layer.weight).flatten(1).double().cpu()
    # each sum is a multiple of the greatest common divisor of its weights: with one weight a channel, a short list
    step = integers.long().abs().T.contiguous()
    divisor = reduce(torch.gcd, step).clamp_min(1).double()
    unit = (inputs.scale * layer.weight_quantizer.scale).double().cpu()
    least, most = (bound - inputs.zero_point.item() for bound in (inputs.qmin, inputs.qmax))
    bias = torch.zeros(len(unit)) if layer.bias is None else (layer.bias.double().cpu() / unit).round()
    below = torch.minimum(integers * least, integers * most).sum(1)
    above = torch.maximum(integers * least, integers * most).sum(1)
    return Values(bias * unit, divisor * unit, below / divisor, above / divisor)


def _levels(quantizer: ActivationQuantizer, channel_scale: Tensor | None) -> Values:
    """The levels of a quantizer, divided by ``channel_scale`` [C] where there is one."""
    zero_point = quantizer.zero_point.double().cpu().view(1)
    unit = quantizer.scale.double().cpu().view(1)
    unit = unit if channel_scale is None else unit / channel_scale.double().cpu()
    low, high = ((bound - zero_point).expand_as(unit) for bound in (quantizer.qmin, quantizer.qmax))
    return Values(torch.zeros_like(unit), unit, low, high)


def _together(parts: Sequence[Values]) -> Values:
    """The values of several tensors."""
    start, unit, low, high = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("start", "unit", "low", "high")
    )
    return Values(start, unit, low, high, max(part.margin for part in parts))


def _sums(first: ActivationQuantizer, second: ActivationQuantizer, factor: float) -> Values:
    """Sums of one quantized value and ``factor`` times another: one range per level of the second."""
    (one, low, high), (other, least, most) = (
        (each.scale.item(), each.qmin - each.zero_point.item(), each.qmax - each.zero_point.item())
        for each in (first, second)
    )
    start = factor * other * torch.arange(least, most + 1, dtype=torch.float64)
    unit, bottom, top = (torch.full_like(start, value) for value in (one, low, high))
    return Values(start, unit, bottom, top, _ADD_MARGIN)


def _second_factor(node: fx.Node) -> float:
    """The factor of an addition's second operand."""
    sign = -1 if operator_of(node) == SUBTRACT else 1
    alpha = node.kwargs.get("alpha", 1)
    assert isinstance(alpha, int | float)
    return sign * alpha


def _distance_from_ties(levels: Tensor) -> float:
    """The least distance of ``levels`` from a half integer; 0.5 where there are none."""
    return (levels - levels.floor() - 0.5).abs().min().item() if len(levels) else 0.5
