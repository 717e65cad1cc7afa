"""The last step: the student becomes what integer kernels compute, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.quantization.plan import operator_of
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import QuantLayer, Student

_MOST_UNITS = 2**30
_FARTHEST = 2**-9  # that a scale moves, of itself: 0.2 %
_TRIES, _MOST_TRIES = 32, 512  # on either side; as many as the values' number allows
_MOST_TRIED = 1 << 25  # values times tries, beyond the fewest
_ENOUGH = 1e-3  # of a step: no float error of a layer is as large
_ENOUGH_OF_TWO = 2e-4  # nor of two values' sum: five roundings by 2^-24 of some 256 steps, twice for good measure
_MOST_SUMS = 1 << 20  # beyond these, some lie near a tie whatever the scale


@torch.no_grad()
def convert_to_integers(student: Student) -> None:
    """Change a calibrated ``student`` a little, so that every engine gives the same logits (this project's definition).

    Biases become whole units of their layer's accumulator: an integer kernel adds ``W x`` in units of weight scale
    times input scale, one a channel, and its bias is such an integer too. Where a bias is more units than 32 bits
    count, as in a channel whose weights are all but zero, the channel's scale grows.

    Scales of activations move by up to 0.2 % to where no accumulator lies halfway between two levels, nor the sum of
    values on two grids: halfway, the order of a sum decides where it is rounded to, and 4-bit networks make much of it.
    Where a layer can give too many sums for that (8 bits), engines may differ by a level here and there, unless its
    grids are binary (``acq.quantization.quantizers``): then nothing is rounded on the way, a tie is one for every engine, and no
    scale has to move. Layers whose input is on no grid stay as they are, and so do scales of means, products, sums with
    numbers, what joins several grids, and smooth functions.
    """
    roles = {site.node: site.role for site in student.plan.sites}
    passing = {name for name, role in roles.items() if role in ("move", "join", "activation")}
    grids: dict[fx.Node, ActivationQuantizer | None] = {}
    sums: dict[fx.Node, _Sums] = {}
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = [source for source in node.all_input_nodes if roles.get(source.name) != "shape"]
        inputs = [grids[source] for source in before]
        grid = inputs[0] if len(set(inputs)) == 1 else None
        if isinstance(module, QuantLayer) and grid is not None:
            _whole_biases(module, grid.scale)
            sums[node] = _sums(module, grid)
        elif isinstance(module, ActivationQuantizer) and not module.power_of_two:
            if before[0] in sums:
                _off_ties(module, sums[before[0]])
            elif grid is not None:  # what is held in more bits
                _off_ties(module, _levels(grid, module.channel_scale))
        elif roles.get(node.name) == "sum" and len(inputs) == 2:
            first, second = inputs
            if first is not None and second is not None:
                sums[node] = _added(first, second, _factor(node))
        elif node.name in passing and len(before) == 1 and before[0] in sums:
            sums[node] = sums[before[0]]
        own = module if isinstance(module, ActivationQuantizer) else None
        grids[node] = own or (grid if node.name in passing else None)


@dataclass(frozen=True)
class _Sums:
    """What sums can be: ``start`` [K] and whole multiples, ``low`` to ``high`` [K], of each one's ``unit`` [K];
    ``enough`` is how far from a tie they are wanted, in steps."""

    start: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor
    enough: float = _ENOUGH

    def values(self, reach: float) -> Tensor | None:
        """Those from ``-reach`` to ``reach``, in order; None if they are too many to be kept off ties."""
        low = torch.maximum(self.low, ((-reach - self.start) / self.unit).floor())
        high = torch.minimum(self.high, ((reach - self.start) / self.unit).ceil())
        if (high - low + 1).clamp_min(0).sum() > _MOST_SUMS:
            return None
        ranges = zip(low.tolist(), high.tolist(), self.start.tolist(), self.unit.tolist(), strict=True)
        found = [
            start + unit * torch.arange(first, max(last + 1, first), dtype=torch.float64)
            for first, last, start, unit in ranges
        ]
        return torch.cat(found).sort().values


def _whole_biases(layer: QuantLayer, input_scale: Tensor) -> None:
    """Round a layer's biases to units of its accumulators."""
    if layer.bias is not None:
        weights = layer.weight_quantizer
        weights.set_qparams(torch.maximum(weights.scale, layer.bias.abs() / (input_scale * _MOST_UNITS)))
        unit = input_scale * weights.scale
        layer.bias.copy_((layer.bias / unit).round() * unit)


def _sums(layer: QuantLayer, inputs: ActivationQuantizer) -> _Sums:
    """What a layer's accumulators can hold, one range a channel."""
    integers = layer.weight_quantizer.integers(layer.weight).flatten(1).double().cpu()
    unit = (inputs.scale * layer.weight_quantizer.scale).double().cpu()
    least, most = (bound - inputs.zero_point.item() for bound in (inputs.qmin, inputs.qmax))
    bias = torch.zeros(len(unit)) if layer.bias is None else (layer.bias.double().cpu() / unit).round()
    below = torch.minimum(integers * least, integers * most).sum(1)
    above = torch.maximum(integers * least, integers * most).sum(1)
    return _Sums(torch.zeros_like(unit), unit, bias + below, bias + above)


def _levels(grid: ActivationQuantizer, channel_scale: Tensor | None) -> _Sums:
    """The values of a grid divided by ``channel_scale`` [C], as sums of as many channels; of one channel without it."""
    zero = grid.zero_point.double().cpu().view(1)
    unit = grid.scale.double().cpu().view(1)
    unit = unit if channel_scale is None else unit / channel_scale.double().cpu()
    low, high = ((bound - zero).expand_as(unit) for bound in (grid.qmin, grid.qmax))
    return _Sums(torch.zeros_like(unit), unit, low, high)


def _added(first: ActivationQuantizer, second: ActivationQuantizer, factor: float) -> _Sums:
    """What a value on one grid and ``factor`` times one on another add up to: a range for each level of the second."""
    (one, low, high), (other, least, most) = (
        (grid.scale.item(), grid.qmin - grid.zero_point.item(), grid.qmax - grid.zero_point.item())
        for grid in (first, second)
    )
    start = factor * other * torch.arange(least, most + 1, dtype=torch.float64)
    unit, bottom, top = (torch.full_like(start, value) for value in (one, low, high))
    return _Sums(start, unit, bottom, top, _ENOUGH_OF_TWO)


def _factor(node: fx.Node) -> float:
    """What a sum's second operand is multiplied by."""
    sign = -1 if operator_of(node) == "aten.sub.Tensor" else 1
    alpha = node.kwargs.get("alpha", 1)
    assert isinstance(alpha, int | float)
    return sign * alpha


def _off_ties(quantizer: ActivationQuantizer, sums: _Sums) -> None:
    """Move a scale a little, to where ``sums`` stay farthest from halfway between two levels."""
    scale, zero = quantizer.scale.item(), quantizer.zero_point.item()
    values = sums.values(scale * (quantizer.qmax + 1))  # beyond, on either side of zero, sums are clipped
    if values is None:
        return
    tries = max(_TRIES, min(_MOST_TRIES, _MOST_TRIED // (2 * max(len(values), 1))))
    best, chosen = -1.0, scale
    for step in sorted(range(tries, -tries - 1, -1), key=abs):  # the nearest first
        moved = scale * (1 + step * _FARTHEST / tries)
        bounds = torch.tensor([-zero - 1, quantizer.qmax - zero + 1], dtype=torch.float64) * moved
        first, last = torch.searchsorted(values, bounds).tolist()
        nearest = _distance_from_ties(values[first:last] / moved)
        if nearest > best:
            best, chosen = nearest, moved
        if best >= sums.enough:
            break
    quantizer.set_qparams(quantizer.scale.new_tensor(chosen), quantizer.zero_point)


def _distance_from_ties(levels: Tensor) -> float:
    """How near the nearest of ``levels`` is to halfway between two integers; a half where there are none."""
    return (levels - levels.floor() - 0.5).abs().min().item() if len(levels) else 0.5
