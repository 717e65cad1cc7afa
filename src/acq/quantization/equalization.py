"""Channels of one range: what layers read in few bits is scaled channel by channel, and their weights the other way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.quantization.calibration import best_steps
from acq.quantization.plan import operator_of
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import QuantConv2d, QuantLayer, QuantLinear, Student, quantizers_off, times_inputs

_TOGETHER = 16  # images whose values are held at once
_SAMPLE = 4096  # values kept of a channel, over all batches
_CLIPS = [0.1 ** (step / 40) for step in range(41)]  # of the greatest value of a channel
_LEAST = 1 / 64  # of the greatest ratio: a channel that hardly ever fires is not blown up without end
_SHARE = 0.5  # of the way, in logarithms: the rest would make of uneven values uneven weights, which are rounded too
# of values of so many dimensions: those for which channels are the second axis
_READERS: dict[int, type[QuantLayer]] = {2: QuantLinear, 4: QuantConv2d}
_RECTIFIED, _CLIPPED = "aten.relu.default", "aten.hardtanh.default"


@torch.no_grad()
def equalize(student: Student, batches: Sequence[Tensor], *, keep: Collection[str] = ()) -> bool:
    """Let every channel of what layers alone read use more levels of its tensor's grid; whether there was any, whose
    ranges are then to be searched anew.

    Each channel is divided by a ratio of its own, the scale at which its values [N, C, ...] on images given in
    ``batches`` are rounded best over the largest such, and the weights that read it are multiplied by it, so that the
    network in floating point stays the same. What a layer gives, rectified or not, is divided by dividing that layer's
    weights; what is held in more bits, for sums, is divided where it is rounded for the layers that read it. Between
    two layers this is cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1) with the ranges of values
    in place of those of weights; the rest is this project's definition. Nodes in ``keep`` stay as they are, and so does
    what has 8 bits: that is fine enough, and binary grids have no other scales.

    Raises:
        ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("equalize needs at least one batch of images")
    places = [place for place in _places(student) if place.node.name.removesuffix("_quantizer") not in keep]
    if not places:
        return False
    samples, greatest = _seen(student, batches, [place.node.name for place in places])
    for place in places:
        values, most = torch.cat(samples.pop(place.node.name), 1), greatest[place.node.name]
        channel_scale = _ratio(values, place.quantizer) ** _SHARE
        if place.bound is not None:  # what is clipped at a bound must be so above the end of the range
            channel_scale = torch.maximum(channel_scale, (most / place.bound).to(channel_scale))
        _give(place, channel_scale)
    return True


@dataclass(frozen=True)
class _Place:
    """A grid whose values layers alone read: its node, these layers, and the one that gives them, which is None where
    the grid divides by itself; ``bound`` is what a rectifier between clips at, if it does."""

    node: fx.Node
    quantizer: ActivationQuantizer
    readers: list[QuantLayer]
    source: QuantLayer | None
    bound: float | None


def _places(student: Student) -> Iterator[_Place]:
    modules = dict(student.placed())
    for node, module in modules.items():
        kind = _READERS.get(len(node.meta["shape"]))
        if not isinstance(module, ActivationQuantizer) or module.bits >= 8 or kind is None:
            continue
        readers = [modules.get(user) for user in node.users]
        layers: list[QuantLayer] = [reader for reader in readers if isinstance(reader, kind)]
        if len(layers) < len(readers):
            continue
        if module.channel_scale is not None:
            yield _Place(node, module, layers, None, None)
            continue
        (before,) = node.all_input_nodes
        bound = None
        if before.op == "call_function" and len(before.users) == 1 and _scales(before):
            bound = float(before.args[2]) if operator_of(before) == _CLIPPED else None  # type: ignore[arg-type]
            (before,) = before.all_input_nodes
        source = modules.get(before)
        if isinstance(source, QuantLayer) and len(before.users) == 1:
            yield _Place(node, module, layers, source, bound)


def _scales(rectifier: fx.Node) -> bool:
    """Whether an operator of what is divided gives what it gives divided, up to a bound above zero."""
    operator, clipped = operator_of(rectifier), len(rectifier.args) == 3 and rectifier.args[1] == 0
    return operator == _RECTIFIED or (operator == _CLIPPED and bool(clipped))


def _seen(
    student: Student, batches: Sequence[Tensor], taps: Sequence[str]
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Of each tap's channels a sample of values [C, n], in parts, and the greatest [C], in floating point."""
    rng = torch.Generator().manual_seed(0)
    samples: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    most: dict[str, Tensor] = {}
    size = max(1, _SAMPLE * _TOGETHER // sum(map(len, batches)))
    with quantizers_off(student):
        for part in (part for batch in batches for part in batch.split(_TOGETHER)):  # type: ignore[no-untyped-call]
            for tap, values in student.read(part, taps)[1].items():
                channels = values.movedim(1, 0).flatten(1)  # [C, N * H * W]
                greatest = channels.amax(1)
                most[tap] = torch.maximum(most[tap], greatest) if tap in most else greatest
                if channels.shape[1] > size:
                    chosen = torch.randint(channels.shape[1], (size,), generator=rng)
                    channels = channels[:, chosen.to(channels.device)]
                samples[tap].append(channels)
    return samples, most


def _ratio(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The scale of each channel [C] of ``values`` [C, n] at which the grid's integers err least, over the largest."""
    zero = int(quantizer.zero_point.item())
    low, high = quantizer.qmin - zero, quantizer.qmax - zero
    widest = torch.maximum(values.amin(1) / min(low, -1), values.amax(1) / max(high, 1)).clamp_min(0)
    least = torch.finfo(widest.dtype).tiny
    scale = best_steps(values, ((widest * clip).clamp_min(least) for clip in _CLIPS), low, high)
    channel_scale = scale / scale.amax()
    return torch.where(widest > 0, channel_scale.clamp_min(_LEAST), 1.0)


def _give(place: _Place, channel_scale: Tensor) -> None:
    for layer in place.readers:
        layer.weight.copy_(times_inputs(layer, layer.weight, channel_scale))
    if place.source is None:
        assert place.quantizer.channel_scale is not None
        place.quantizer.channel_scale.mul_(channel_scale)
        return
    place.source.weight.div_(channel_scale.view(-1, *(1,) * (place.source.weight.dim() - 1)))
    if place.source.bias is not None:
        place.source.bias.div_(channel_scale)
