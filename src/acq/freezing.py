"""The last step: the student becomes what integer kernels compute, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.quantizers import ActivationQuantizer
from acq.student import QuantLayer, Student

_MOST_UNITS = 2**30
_NUDGES = [sign * step / 2**14 for step in range(33) for sign in (1, -1)][1:]  # of a scale: 0 first, up to 0.2 %
_ENOUGH = 1e-3  # of a step: no float error is as large
_MOST_SUMS = 1 << 20  # beyond these, some lie near a tie whatever the scale


@torch.no_grad()
def freeze(student: Student) -> None:
    """Change a calibrated ``student`` a little, so that every engine gives the same logits (this project's definition).

    Biases become whole units of their layer's accumulator: an integer kernel adds ``W x`` in units of weight scale
    times input scale, one a channel, and its bias is such an integer too. Where a bias is more units than 32 bits
    count, as in a channel whose weights are all but zero, the channel's scale grows.

    Scales of activations move by up to 0.2 % to where no accumulator lies halfway between two levels: halfway, the
    order of a sum decides where it is rounded to, and 4-bit networks make much of it. Where a layer can give too many
    sums for that (8 bits), engines may differ by a level here and there, unless its grids are binary
    (``acq.quantizers``): then nothing is rounded on the way, a tie is one for every engine, and no scale has to move.
    Layers whose input is on no grid stay as they are, and so do scales of what values on two grids add up to.
    """
    roles = {site.node: site.role for site in student.plan.sites}
    passing = {name for name, role in roles.items() if role in ("move", "join", "activation")}
    grids: dict[fx.Node, ActivationQuantizer | None] = {}
    sums: dict[fx.Node, _Sums] = {}
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = [source for source in node.all_input_nodes if roles.get(source.name) != "shape"]
        found = {grids[source] for source in before}
        grid = found.pop() if len(found) == 1 else None
        if isinstance(module, QuantLayer) and grid is not None:
            _whole_biases(module, grid.scale)
            sums[node] = _sums(module, grid)
        elif isinstance(module, ActivationQuantizer) and not module.binary:
            if before[0] in sums:
                _off_ties(module, sums[before[0]])
            elif grid is not None:  # what is held in more bits
                _off_ties(module, _levels(grid, module.ratio))
        elif node.name in passing and len(before) == 1 and before[0] in sums:
            sums[node] = sums[before[0]]
        own = module if isinstance(module, ActivationQuantizer) else None
        grids[node] = own or (grid if node.name in passing else None)


@dataclass(frozen=True)
class _Sums:
    """What a layer's accumulators can hold: of each channel's ``unit`` [K], whole multiples ``low`` to ``high`` [K]."""

    unit: Tensor
    low: Tensor
    high: Tensor


def _whole_biases(layer: QuantLayer, input_scale: Tensor) -> None:
    """Round a layer's biases to units of its accumulators."""
    if layer.bias is not None:
        weights = layer.weight_quantizer
        weights.freeze(torch.maximum(weights.scale, layer.bias.abs() / (input_scale * _MOST_UNITS)))
        unit = input_scale * weights.scale
        layer.bias.copy_((layer.bias / unit).round() * unit)


def _sums(layer: QuantLayer, inputs: ActivationQuantizer) -> _Sums:
    integers = layer.weight_quantizer.integers(layer.weight).flatten(1).double().cpu()
    unit = (inputs.scale * layer.weight_quantizer.scale).double().cpu()
    least, most = (bound - inputs.zero_point.item() for bound in (inputs.low, inputs.high))
    bias = torch.zeros(len(unit)) if layer.bias is None else (layer.bias.double().cpu() / unit).round()
    below = torch.minimum(integers * least, integers * most).sum(1)
    above = torch.maximum(integers * least, integers * most).sum(1)
    return _Sums(unit, bias + below, bias + above)


def _levels(grid: ActivationQuantizer, ratio: Tensor | None) -> _Sums:
    """The values of a grid divided by ``ratio`` [C], as sums of as many channels; of one channel without it."""
    zero = grid.zero_point.double().cpu().view(1)
    unit = grid.scale.double().cpu().view(1)
    unit = unit if ratio is None else unit / ratio.double().cpu()
    return _Sums(unit, (grid.low - zero).expand_as(unit), (grid.high - zero).expand_as(unit))


def _off_ties(quantizer: ActivationQuantizer, sums: _Sums) -> None:
    """Move a scale a little, to where ``sums`` stay farthest from halfway between two levels."""
    scale, zero = quantizer.scale.item(), quantizer.zero_point.item()
    reach = (scale * (quantizer.high + 1) / sums.unit).ceil()  # beyond it, on either side of zero, sums are clipped
    low, high = torch.maximum(sums.low, -reach), torch.minimum(sums.high, reach)
    if (high - low + 1).clamp_min(0).sum() > _MOST_SUMS:
        return
    ranges = zip(low.tolist(), high.tolist(), sums.unit.tolist(), strict=True)
    counted = [torch.arange(first, max(last + 1, first), dtype=torch.float64) * unit for first, last, unit in ranges]
    values = torch.cat(counted)
    best, chosen = -1.0, scale
    for nudge in _NUDGES:
        levels = values / (scale * (1 + nudge))
        nearest = _distance_from_ties(levels[(levels > -zero - 1) & (levels < quantizer.high - zero + 1)])
        if nearest > best:
            best, chosen = nearest, scale * (1 + nudge)
        if best >= _ENOUGH:
            break
    quantizer.freeze(quantizer.scale.new_tensor(chosen), quantizer.zero_point)


def _distance_from_ties(levels: Tensor) -> float:
    """How near the nearest of ``levels`` is to halfway between two integers; a half where there are none."""
    return (levels - levels.floor() - 0.5).abs().min().item() if len(levels) else 0.5
