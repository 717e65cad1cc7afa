"""The last step: the student becomes what integer kernels compute, to the bit."""

from __future__ import annotations

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
    order of a sum decides where it is rounded to, and 4-bit networks make much of it. Where outputs are too many for
    that (8 bits), engines may differ by a level here and there. Layers whose input is on no grid stay as they are.
    """
    roles = {site.node: site.role for site in student.plan.sites}
    passing = {name for name, role in roles.items() if role in ("move", "join", "activation")}
    grids: dict[fx.Node, ActivationQuantizer | None] = {}
    units: dict[fx.Node, Tensor] = {}  # of a layer's accumulators, one a channel
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = [source for source in node.all_input_nodes if roles.get(source.name) != "shape"]
        found = {grids[source] for source in before}
        grid = found.pop() if len(found) == 1 else None
        if isinstance(module, QuantLayer) and grid is not None:
            units[node] = _whole_biases(module, grid.scale)
        elif isinstance(module, ActivationQuantizer) and before[0] in units:
            _off_ties(module, units[before[0]])
        elif node.name in passing and len(before) == 1 and before[0] in units:
            units[node] = units[before[0]]
        own = module if isinstance(module, ActivationQuantizer) else None
        grids[node] = own or (grid if node.name in passing else None)


def _whole_biases(layer: QuantLayer, input_scale: Tensor) -> Tensor:
    """Round a layer's biases to units of its accumulators, which are returned [K]."""
    weights = layer.weight_quantizer
    if layer.bias is not None:
        weights.freeze(torch.maximum(weights.scale, layer.bias.abs() / (input_scale * _MOST_UNITS)))
        unit = input_scale * weights.scale
        layer.bias.copy_((layer.bias / unit).round() * unit)
    return input_scale * weights.scale


def _off_ties(quantizer: ActivationQuantizer, units: Tensor) -> None:
    """Move a scale a little, to where sums of ``units`` [K] stay farthest from halfway between two levels."""
    scale, zero, unit = quantizer.scale.item(), quantizer.zero_point.item(), units.double().cpu()
    reach = (scale * (quantizer.high + 1) / unit).ceil()  # sums on either side of zero that are not clipped
    if 2 * reach.sum() > _MOST_SUMS:
        return
    counts = [torch.arange(-n, n + 1, dtype=torch.float64) for n in reach.tolist()]
    sums = torch.cat([count * one for count, one in zip(counts, unit, strict=True)])
    best, chosen = -1.0, scale
    for nudge in _NUDGES:
        levels = sums / (scale * (1 + nudge))
        levels = levels[(levels > -zero - 1) & (levels < quantizer.high - zero + 1)]
        nearest = (levels - levels.floor() - 0.5).abs().min().item()
        if nearest > best:
            best, chosen = nearest, scale * (1 + nudge)
        if best >= _ENOUGH:
            break
    quantizer.freeze(quantizer.scale.new_tensor(chosen), quantizer.zero_point)
