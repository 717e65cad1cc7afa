"""How pools, means and resizes are written in ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from acq.export.registry import (
    argument,
    changed,
    gathered,
    input_of,
    moved,
    refused,
    require_first_only,
    values_of,
    writes,
)
from acq.export.writer import Value, Writer
from acq.network.operators import operator_of

_MOST_COPIES = 64  # of each value, in an adaptive pool whose windows differ


@dataclass(frozen=True)
class _Windows:
    """Where the windows of a pool lie, one entry per axis behind the channels."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ends: list[int]  # padding behind, so that the last window of the operator is the last one without rounding up


def _windows(node: fx.Node, after: Sequence[int], dilation: Any = 1) -> _Windows:
    before = _lengths(node)
    kernel, padding, steps = (
        _per_axis(value, len(before)) for value in (argument(node, 1), argument(node, 3, 0), dilation)
    )
    stride = _per_axis(argument(node, 2) or kernel, len(before))
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(after, stride, steps, kernel, strict=True)]
    ends = [max(r - size - p, 0) for r, size, p in zip(reach, before, padding, strict=True)]
    return _Windows(kernel, stride, padding, steps, ends)


def _per_axis(value: Any, axes: int) -> list[int]:
    """An operator's argument as one number per axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _lengths(node: fx.Node) -> list[int]:
    """The sizes of a pool's input behind images and channels."""
    axes = 1 if "1d" in operator_of(node) else 2
    shape = list(input_of(node).meta["shape"])
    if len(shape) != axes + 2 or any(size < 0 for size in shape[2:]):
        raise refused(node, " for other values than [N, C, H, W]")
    return shape[2:]


@writes("avg_pool2d.default", "avg_pool1d.default")
def _average_pool(writer: Writer, node: fx.Node) -> Value:
    """Padding that counts is written on its own: on bytes OpenVINO pads with 0 whatever the zero point is."""
    if argument(node, 6) is not None:
        raise refused(node, " with a divisor of its own")
    windows = _windows(node, node.meta["shape"][2:])
    value, before = values_of(writer, input_of(node)), windows.padding
    ends = windows.ends
    if any(windows.padding) and argument(node, 5, True):
        value = _zero_padded(writer, value, windows.padding)
        ends = [max(end - pad, 0) for end, pad in zip(ends, windows.padding, strict=True)]
        before = [0] * len(before)
    return Value(
        writer.add(
            "AveragePool",
            [writer.floats_of(value)],
            kernel_shape=windows.kernel,
            strides=windows.stride,
            pads=[*before, *ends],
        )
    )


def _zero_padded(writer: Writer, value: Value, padding: Sequence[int]) -> Value:
    pads = writer.integers([0, 0, *padding] * 2)
    zero = writer.number(0.0) if value.qparams is None else value.qparams[1]
    return changed(value, lambda name: writer.add("Pad", [name, pads, zero]))


@writes("max_pool2d.default", "max_pool1d.default")
def _max_pool(writer: Writer, node: fx.Node) -> Value:
    return _maxima(writer, node, node.meta["shape"][2:])


@writes("max_pool2d_with_indices.default")
def _max_pool_of_two_results(writer: Writer, node: fx.Node) -> list[Value]:
    """The maxima, which ``getitem`` selects; their indices are not written."""
    require_first_only(node)
    return [_maxima(writer, node, next(iter(node.users)).meta["shape"][2:])]


def _maxima(writer: Writer, node: fx.Node, after: Sequence[int]) -> Value:
    windows = _windows(node, after, argument(node, 4, 1))
    if any(end >= size for end, size in zip(windows.ends, windows.kernel, strict=True)):  # ONNX Runtime refuses it
        raise refused(node, " with more padding behind the image than a window has places")
    return moved(
        writer,
        node,
        "MaxPool",
        kernel_shape=windows.kernel,
        strides=windows.stride,
        pads=[*windows.padding, *windows.ends],
        dilations=windows.dilation,
    )


# adaptive pools: if windows differ, each one's values are repeated until all are equally long


@writes("adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def _adaptive_average_pool(writer: Writer, node: fx.Node) -> Value:
    before, after = _lengths(node), list(node.meta["shape"][2:])
    value = values_of(writer, input_of(node))
    windows = [_adaptive(old, new) for old, new in zip(before, after, strict=True)]
    lengths = [math.lcm(*map(len, along)) for along in windows]
    if max(lengths) > 1 and all(size == 1 for size in after):
        return Value(writer.add("GlobalAveragePool", [writer.floats_of(value)]))
    if math.prod(k * n for k, n in zip(lengths, after, strict=True)) > _MOST_COPIES * math.prod(before):
        raise refused(node, f" from {before} to {after}, because its windows differ")
    repeated = [
        [place for window in along for place in window for _ in range(length // len(window))]
        for along, length in zip(windows, lengths, strict=True)
    ]
    value = gathered(writer, value, dict(_other_places(repeated, before)))
    if max(lengths) == 1:  # the pool only repeats values
        return value
    return Value(writer.add("AveragePool", [writer.floats_of(value)], kernel_shape=lengths, strides=lengths))


@writes("adaptive_max_pool2d.default", "adaptive_max_pool1d.default")
def _adaptive_max_pool(writer: Writer, node: fx.Node) -> list[Value]:
    """The maxima, which ``getitem`` selects; their indices are not written."""
    require_first_only(node)
    before, after = _lengths(node), list(next(iter(node.users)).meta["shape"][2:])
    windows = [_adaptive(old, new) for old, new in zip(before, after, strict=True)]
    lengths = [max(map(len, along)) for along in windows]
    repeated = [
        [place for window in along for place in [*window, *[window[-1]] * (length - len(window))]]
        for along, length in zip(windows, lengths, strict=True)
    ]
    value = gathered(writer, values_of(writer, input_of(node)), dict(_other_places(repeated, before)))
    return [changed(value, lambda name: writer.add("MaxPool", [name], kernel_shape=lengths, strides=lengths))]


def _adaptive(before: int, after: int) -> list[range]:
    """The windows of an adaptive pool along one axis."""
    return [range(place * before // after, -(-(place + 1) * before // after)) for place in range(after)]


def _other_places(chosen: Sequence[list[int]], before: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The places along each axis behind the channels, where they are not all places in order."""
    for axis, (places, size) in enumerate(zip(chosen, before, strict=True), 2):
        if places != [*range(size)]:
            yield axis, places


# means and sums


@writes("mean.dim")
def _mean(writer: Writer, node: fx.Node) -> Value:
    """Means over adjacent axes are pools, for which engines have integer kernels."""
    source = input_of(node)
    shape = list(source.meta["shape"])
    axes = sorted(axis % len(shape) for axis in argument(node, 1) or range(len(shape)))
    adjacent = axes == [*range(axes[0], axes[-1] + 1)] and axes[0] > 0
    if not adjacent or any(size < 0 for size in shape[1:]) or len(shape) < 2 or _is_cast(node):
        return _reduced(writer, node, "ReduceMean")
    first, last = axes[0], axes[-1] + 1
    before, count, behind = (math.prod(part) for part in (shape[1:first], shape[first:last], shape[last:]))
    value = values_of(writer, source)
    if axes != [2, 3] or len(shape) != 4:
        flat = writer.integers([-1, before, count, behind])
        value = changed(value, lambda name: writer.add("Reshape", [name, flat]))
    if behind == 1:
        pooled = writer.add("GlobalAveragePool", [writer.floats_of(value)])
    else:
        pooled = writer.add("AveragePool", [writer.floats_of(value)], kernel_shape=[count, 1])
    if list(node.meta["shape"]) == [shape[0], before, 1, behind]:
        return Value(pooled)
    return Value(writer.add("Reshape", [pooled, writer.integers(node.meta["shape"])]))


@writes("sum.dim_IntList")
def _sum(writer: Writer, node: fx.Node) -> Value:
    return _reduced(writer, node, "ReduceSum")


def _is_cast(node: fx.Node) -> bool:
    """Whether a mean or sum is of another type than the student's floats."""
    return node.kwargs.get("dtype") not in (None, torch.float32)


def _reduced(writer: Writer, node: fx.Node, kind: str) -> Value:
    if _is_cast(node):
        raise refused(node, " in another type")
    source = input_of(node)
    axes = [axis % len(source.meta["shape"]) for axis in argument(node, 1) or range(len(source.meta["shape"]))]
    keep = int(bool(argument(node, 2, False)))
    return Value(writer.add(kind, [writer.floats(source), writer.integers(axes)], keepdims=keep))


# resizes that interpolate: on bytes ONNX Runtime rounds down and OpenVINO to the nearest, so they take floats


@writes("upsample_bilinear2d.vec", "upsample_bilinear2d.default", "upsample_linear1d.vec", "upsample_linear1d.default")
def _resize_linear(writer: Writer, node: fx.Node) -> Value:
    before, after = _lengths(node), list(node.meta["shape"][2:])
    aligned = bool(argument(node, 2))
    given = argument(node, 3) if operator_of(node).endswith(".vec") else list(node.args[3:])
    mode = {"mode": "linear", "coordinate_transformation_mode": "align_corners" if aligned else "half_pixel"}
    factors = [_factor(old, new) for old, new in zip(before, after, strict=True)]
    if not aligned and given and all(given):
        # torch takes no notice of a factor that does not change the size
        factors = [1.0 if old == new else scale for old, new, scale in zip(before, after, given, strict=True)]
    return Value(writer.add("Resize", [writer.floats(input_of(node)), "", writer.scales([1, 1, *factors])], **mode))


def _factor(before: int, after: int) -> float:
    """The least 32-bit factor that gives a size, as engines find sizes: they multiply and round down.

    ONNX Runtime refuses the sizes themselves where it moves a Transpose across Resize: it takes them for sizes of all
    axes, and those of the images and channels are missing.
    """
    factor = np.float32(after / before)
    return float(factor if float(factor) * before >= after else np.nextafter(factor, np.float32(np.inf)))
