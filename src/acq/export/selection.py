"""How operators that select or reorder values are written in ONNX: on bytes where the value is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from acq.export.registry import (
    argument,
    axis_of,
    changed,
    gathered,
    input_of,
    moved,
    refused,
    values_of,
    writes,
)
from acq.export.writer import Value, Writer

aten = torch.ops.aten


@writes("flip.default")
def _flip(writer: Writer, node: fx.Node) -> Value:
    shape = input_of(node).meta["shape"]
    axes = [axis_of(node, axis) for axis in argument(node, 1)]
    return gathered(writer, values_of(writer, input_of(node)), {axis: range(shape[axis])[::-1] for axis in axes})


@writes("roll.default")
def _roll(writer: Writer, node: fx.Node) -> Value:
    shifts, axes = argument(node, 1), argument(node, 2, [])
    if len(axes) != len(shifts):
        raise refused(node, " over all axes at once")
    value, shape = values_of(writer, input_of(node)), input_of(node).meta["shape"]
    for shift, axis in zip(shifts, axes, strict=True):  # an axis may come twice
        size = shape[axis_of(node, axis)]
        value = gathered(writer, value, {axis_of(node, axis): [(place - shift) % size for place in range(size)]})
    return value


@writes("repeat_interleave.self_int")
def _repeat_each(writer: Writer, node: fx.Node) -> Value:
    times, axis = argument(node, 1), argument(node, 2)
    axis = axis_of(node, axis)
    places = [place for place in range(input_of(node).meta["shape"][axis]) for _ in range(times)]
    return gathered(writer, values_of(writer, input_of(node)), {axis: places})


@writes("index_select.default")
def _index_select(writer: Writer, node: fx.Node) -> Value:
    axis = axis_of(node, argument(node, 1))
    return _indexed(writer, node, axis, argument(node, 2), flat=True)


@writes("index.Tensor")
def _index(writer: Writer, node: fx.Node) -> Value:
    """Constant indices along one axis, such as another order of channels."""
    given = [(axis, index) for axis, index in enumerate(argument(node, 1)) if index is not None]
    if len(given) != 1:
        raise refused(node, " along several axes at once")
    ((axis, index),) = given
    return _indexed(writer, node, axis_of(node, axis), index)


def _indexed(writer: Writer, node: fx.Node, axis: int, index: Any, *, flat: bool = False) -> Value:
    constant = writer.tensors.get(index)
    if constant is None or constant.dtype not in (torch.int64, torch.int32):
        raise refused(node, " by indices that are no constant integers")
    size = input_of(node).meta["shape"][axis]
    value = gathered(writer, values_of(writer, input_of(node)), {axis: (constant.flatten() % size).tolist()})
    if flat or constant.dim() == 1:
        return value
    shape = writer.integers(node.meta["shape"])
    return changed(value, lambda name: writer.add("Reshape", [name, shape]))


@writes("pixel_shuffle.default")
def _pixel_shuffle(writer: Writer, node: fx.Node) -> Value:
    if len(node.meta["shape"]) != 4:
        raise refused(node, " for other values than [N, C, H, W]")
    return moved(writer, node, "DepthToSpace", blocksize=argument(node, 1), mode="CRD")


@writes("pixel_unshuffle.default")
def _pixel_unshuffle(writer: Writer, node: fx.Node) -> Value:
    """ONNX's SpaceToDepth has another order of channels."""
    if len(node.meta["shape"]) != 4:
        raise refused(node, " for other values than [N, C, H, W]")
    _, channels, height, width = input_of(node).meta["shape"]
    factor = argument(node, 1)
    apart = [-1, channels, height // factor, factor, width // factor, factor]
    return _transposed(writer, node, apart, [0, 1, 3, 5, 2, 4])


@writes("channel_shuffle.default", "native_channel_shuffle.default")
def _channel_shuffle(writer: Writer, node: fx.Node) -> Value:
    _, channels, *others = input_of(node).meta["shape"]
    groups = argument(node, 1)
    apart = [-1, groups, channels // groups, *others]
    return _transposed(writer, node, apart, [0, 2, 1, *range(3, len(apart))])


def _transposed(writer: Writer, node: fx.Node, apart: list[int], order: list[int]) -> Value:
    """Reshape, permute and reshape again."""
    before, after = writer.integers(apart), writer.integers(node.meta["shape"])

    def write(name: str) -> str:
        name = writer.add("Reshape", [name, before])
        return writer.add("Reshape", [writer.add("Transpose", [name], perm=order), after])

    return changed(values_of(writer, input_of(node)), write)


@writes(
    "upsample_nearest1d.vec", "upsample_nearest1d.default", "upsample_nearest2d.vec", "upsample_nearest2d.default",
    "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact1d.default",
    "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact2d.default",
)  # fmt: skip
def _resize_nearest(writer: Writer, node: fx.Node) -> Value:
    """Whole factors by Resize, which is fast. For others engines round coordinates in ways of their own."""
    places = dict(_nearest(node))
    before = [input_of(node).meta["shape"][axis] for axis in places]
    factors = [len(chosen) // size for chosen, size in zip(places.values(), before, strict=True)]
    if any(
        chosen != [place // factor for place in range(size * factor)]
        for chosen, size, factor in zip(places.values(), before, factors, strict=True)
    ):
        return gathered(writer, values_of(writer, input_of(node)), places)
    scales = writer.scales([1, 1, *factors])
    return moved(
        writer,
        node,
        "Resize",
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _nearest(node: fx.Node) -> Iterator[tuple[int, list[int]]]:
    """The places that the operator takes along each axis behind the channels, as torch finds them."""
    shape: Any = input_of(node).meta["shape"]
    arguments: Any = node.args[1:]
    target: Any = node.target
    sizes = [shape[axis_of(node, axis)] for axis in range(2, len(shape))]
    for axis, size in enumerate(sizes):
        line = torch.arange(size, dtype=torch.float32).view([-1 if other == axis else 1 for other in range(len(sizes))])
        found = target(line.expand(1, 1, *sizes), *arguments)
        yield axis + 2, found.movedim(axis + 2, 0).reshape(found.shape[axis + 2], -1)[:, 0].long().tolist()
