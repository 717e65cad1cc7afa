"""Equalization: rescale the channels of layer inputs so that each one uses more levels of its tensor's quantizer.

A quantizer has one scale per tensor, so a channel with small values uses few levels. Dividing the channel and
multiplying the consumers' weights by the same factor keeps the network in floating point unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from acq.network.operators import HARDTANH, RELU, operator_of
from acq.quantization.calibration import best_scale
from acq.quantization.layers import QuantConv2d, QuantLayer, QuantLinear, scale_input_channels
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student, quantizers_off

_BATCH = 16  # images whose values are in memory at once
_SAMPLE = 4096  # values kept per channel, over all batches
_CLIP_RATIOS = [0.1 ** (step / 40) for step in range(41)]  # of a channel's greatest value
_SMALLEST_SCALE = 1 / 64  # of the largest channel scale: a channel that is almost always zero is not amplified further
_EXPONENT = 0.5  # a full equalization would make the weights uneven, which are quantized too
_FINE_BITS = 8  # tensors with so many bits are fine enough
# layers whose input has the channels as its second axis, by the input's number of dimensions
_CONSUMERS: dict[int, type[QuantLayer]] = {2: QuantLinear, 4: QuantConv2d}


@torch.no_grad()
def equalize(student: Student, batches: Sequence[Tensor], *, keep: Collection[str | None] = ()) -> bool:
    """Rescale the channels of layer inputs with fewer than 8 bits.

    Each channel is divided by a factor: the scale at which its values are quantized best, relative to the largest such
    scale. If a layer produces the tensor, through a rectifier or not, the layer's weights are divided. If the tensor is
    requantized, the requantizer divides (``channel_scale``). Between two layers this is cross-layer equalization (Nagel
    et al., arXiv 1906.04721, section 4.1) with activation ranges in place of weight ranges. The rest is this project's
    definition.

    Args:
        student: A calibrated student; its weights, biases and channel scales change.
        batches: Images [N, C, H, W].
        keep: Names of tensors that stay as they are; None is no tensor.

    Returns:
        Whether anything changed. Ranges must then be calibrated again.

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("equalize needs at least one batch of images")
    tensors = [tensor for tensor in _equalizable(student) if tensor.quantizer.name not in keep]
    if not tensors:
        return False
    samples, maxima = _observe(student, batches, [tensor.quantizer.name for tensor in tensors])
    for tensor in tensors:
        values, largest = torch.cat(samples.pop(tensor.quantizer.name), 1), maxima[tensor.quantizer.name]
        factor = relative_scales(values, tensor.quantizer) ** _EXPONENT
        if tensor.bound is not None:  # a clipped value must stay above the end of the range
            factor = torch.maximum(factor, (largest / tensor.bound).to(factor))
        _rescale(tensor, factor)
    return True


@torch.no_grad()
def relative_scales(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The scale per channel with the least rounding error, relative to the largest one.

    Args:
        values: A sample of values per channel [C, n].
        quantizer: A calibrated quantizer, for its integers.

    Returns:
        Ratios [C] from 1/64 to 1; 1 for a channel without values in the quantizer's range.
    """
    zero_point = int(quantizer.zero_point.item())
    qmin, qmax = quantizer.qmin - zero_point, quantizer.qmax - zero_point
    widest = torch.maximum(values.amin(1) / min(qmin, -1), values.amax(1) / max(qmax, 1)).clamp_min(0)
    tiny = torch.finfo(widest.dtype).tiny
    scale = best_scale(values, ((widest * ratio).clamp_min(tiny) for ratio in _CLIP_RATIOS), qmin, qmax)
    relative = scale / scale.amax()
    return torch.where(widest > 0, relative.clamp_min(_SMALLEST_SCALE), 1.0)


@dataclass(frozen=True)
class _Tensor:
    """A tensor that only layers consume.

    ``producer`` is the layer that produces it, or None if its requantizer divides. ``bound`` is the upper bound of the
    rectifier in between, if it has one.
    """

    quantizer: ActivationQuantizer
    consumers: list[QuantLayer]
    producer: QuantLayer | None
    bound: float | None


def _equalizable(student: Student) -> Iterator[_Tensor]:
    modules = dict(student.modules_in_order())
    for node, quantizer in modules.items():
        kind = _CONSUMERS.get(len(node.meta["shape"]))
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.bits >= _FINE_BITS or kind is None:
            continue
        users = [modules.get(user) for user in node.users]
        consumers: list[QuantLayer] = [user for user in users if isinstance(user, kind)]
        if len(consumers) < len(users):
            continue
        if quantizer.channel_scale is not None:
            yield _Tensor(quantizer, consumers, None, None)
            continue
        (source,) = node.all_input_nodes
        bound = None
        if source.op == "call_function" and len(source.users) == 1 and _is_scalable(source):
            bound = _upper_bound(source)
            (source,) = source.all_input_nodes
        producer = modules.get(source)
        if isinstance(producer, QuantLayer) and len(source.users) == 1:
            yield _Tensor(quantizer, consumers, producer, bound)


def _is_scalable(rectifier: fx.Node) -> bool:
    """Whether an operator of a divided input gives its divided output, up to an upper bound."""
    if operator_of(rectifier) == HARDTANH:
        return len(rectifier.args) == 3 and bool(rectifier.args[1] == 0)
    return operator_of(rectifier) == RELU


def _upper_bound(rectifier: fx.Node) -> float | None:
    bound: Any = rectifier.args[2] if operator_of(rectifier) == HARDTANH else None
    return None if bound is None else float(bound)


def _observe(
    student: Student, batches: Sequence[Tensor], names: Sequence[str]
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Values per channel in floating point: a sample [C, n] of each tensor, in parts, and the greatest ones [C]."""
    rng = torch.Generator().manual_seed(0)
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    maxima: dict[str, Tensor] = {}
    size = max(1, _SAMPLE * _BATCH // sum(map(len, batches)))
    with quantizers_off(student):
        for part in (part for batch in batches for part in batch.split(_BATCH)):  # type: ignore[no-untyped-call]
            for name, values in student.read(part, names)[1].items():
                channels = values.movedim(1, 0).flatten(1)  # [N, C, ...] -> [C, n]
                largest = channels.amax(1)
                maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest
                if channels.shape[1] > size:
                    chosen = torch.randint(channels.shape[1], (size,), generator=rng)
                    channels = channels[:, chosen.to(channels.device)]
                samples[name].append(channels)
    return samples, maxima


def _rescale(tensor: _Tensor, factor: Tensor) -> None:
    """Divide a tensor's channels by ``factor`` [C] and multiply its consumers' weights by it."""
    for layer in tensor.consumers:
        layer.weight.copy_(scale_input_channels(layer, layer.weight, factor))
    if tensor.producer is None:
        assert tensor.quantizer.channel_scale is not None
        tensor.quantizer.channel_scale.mul_(factor)
        return
    tensor.producer.weight.div_(factor.view(-1, *(1,) * (tensor.producer.weight.dim() - 1)))
    if tensor.producer.bias is not None:
        tensor.producer.bias.div_(factor)
