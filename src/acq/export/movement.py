"""How operators that move values are written in ONNX: on bytes where the value is quantized."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from acq.export.registry import argument, changed, input_of, moved, refused, writes
from acq.export.writer import Value, Writer
from acq.network.operators import PADS, operator_of

_END = 2**63 - 1  # ONNX's bound of a slice without an end
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@writes("reshape.default", "view.default", "flatten.using_ints", "squeeze.dim", "squeeze.dims", "unsqueeze.default")
def _reshape(writer: Writer, node: fx.Node) -> Value:
    return moved(writer, node, "Reshape", writer.integers(node.meta["shape"]))


@writes("permute.default")
def _permute(writer: Writer, node: fx.Node) -> Value:
    rank = len(node.meta["shape"])
    return moved(writer, node, "Transpose", perm=[axis % rank for axis in argument(node, 1)])


@writes("transpose.int", "t.default")
def _transpose(writer: Writer, node: fx.Node) -> Value:
    order = list(range(len(node.meta["shape"])))
    first, second = argument(node, 1, 0), argument(node, 2, 1)
    order[first], order[second] = order[second], order[first]
    return moved(writer, node, "Transpose", perm=order)


@writes("slice.Tensor")
def _slice(writer: Writer, node: fx.Node) -> Value:
    axis = argument(node, 1, 0)
    start, end, step = argument(node, 2) or 0, argument(node, 3), argument(node, 4, 1)
    bounds = [start, _END if end is None else end, axis, step]
    if not all(isinstance(bound, int) for bound in bounds):
        raise refused(node, " with a bound that depends on the batch")
    return moved(writer, node, "Slice", *(writer.integers([bound]) for bound in bounds))


@writes("select.int")
def _select(writer: Writer, node: fx.Node) -> Value:
    axis, index = argument(node, 1), argument(node, 2)
    bounds = (writer.integers([bound]) for bound in (index, _END if index == -1 else index + 1, axis))
    cut = moved(writer, node, "Slice", *bounds)
    shape = writer.integers(node.meta["shape"])
    return changed(cut, lambda name: writer.add("Reshape", [name, shape]))


@writes("pad.default", "constant_pad_nd.default")
def _pad(writer: Writer, node: fx.Node) -> Value:
    source = input_of(node)
    if node in writer.padded:
        value = writer.values[source]
        return replace(value if value.bytes is not None else Value(writer.floats(source)), pads=zero_pads(node))
    mode, fill = _mode_and_fill(node)
    if mode not in _PAD_MODES:
        raise refused(node, f" in mode {mode}")
    pads = writer.integers([*_pads(node, 0), *_pads(node, 1)])
    if mode != "constant":
        return moved(writer, node, "Pad", pads, mode=_PAD_MODES[mode])
    qparams = writer.values[source].qparams
    if fill == 0 and qparams is not None:
        return moved(writer, node, "Pad", pads, qparams[1])
    return Value(writer.add("Pad", [writer.floats(source), pads, writer.number(fill)]))


def zero_pads(node: fx.Node) -> tuple[int, ...]:
    """The zeros that a node adds around images [N, C, H, W]: top, left, bottom, right; () for any other operation."""
    if node.op != "call_function" or operator_of(node) not in PADS:
        return ()
    before, behind = _pads(node, 0), _pads(node, 1)
    plain = _mode_and_fill(node) == ("constant", 0) and len(before) == 4 and not any(before[:2] + behind[:2])
    return (*before[2:], *behind[2:]) if plain and min(before + behind) >= 0 else ()


def _mode_and_fill(node: fx.Node) -> tuple[str, float]:
    has_mode = operator_of(node) == "aten.pad.default"
    mode = argument(node, 2, "constant") if has_mode else "constant"
    fill = node.kwargs.get("value", argument(node, 3 if has_mode else 2)) or 0
    return mode, float(fill)


def _pads(node: fx.Node, side: int) -> list[int]:
    """What is added before (``side`` 0) or behind (1) each axis; the operator's list begins with the last axis."""
    given = list(argument(node, 1))
    return [0] * (len(node.meta["shape"]) - len(given) // 2) + given[side::2][::-1]


@writes("cat.default", "concat.default")
def _concat(writer: Writer, node: fx.Node) -> Value:
    parts: Any = argument(node, 0)
    axis = argument(node, 1, 0)
    values = [writer.values[part] for part in parts]
    names = [value.bytes for value in values]
    if len({value.qparams for value in values}) == 1 and None not in names:
        return Value(None, writer.add("Concat", [str(name) for name in names], axis=axis), values[0].qparams)
    return Value(writer.add("Concat", [writer.floats(part) for part in parts], axis=axis))


@writes("split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int")
def _split(writer: Writer, node: fx.Node) -> list[Value]:
    """The pieces; each ``getitem`` selects one."""
    source = input_of(node)
    if operator_of(node) == "aten.unbind.int":
        raise refused(node)
    axis = argument(node, 2, 0) % len(source.meta["shape"])
    whole, sizes = source.meta["shape"][axis], argument(node, 1)
    if isinstance(sizes, int):
        size = math.ceil(whole / sizes) if operator_of(node) == "aten.chunk.default" else sizes
        sizes = [min(size, whole - start) for start in range(0, whole, size)]
    value = writer.values[source]
    name = value.bytes if value.bytes is not None else writer.floats(source)
    pieces = writer.split(name, axis, sizes)
    return [Value(piece) if value.bytes is None else Value(None, piece, value.qparams) for piece in pieces]


@writes("upsample_nearest2d.vec", "upsample_nearest2d.default")
def _upsample_nearest(writer: Writer, node: fx.Node) -> Value:
    before, after = input_of(node).meta["shape"][2:], node.meta["shape"][2:]
    factors = [a // b for a, b in zip(after, before, strict=True)]
    given = argument(node, 2) if operator_of(node) == "aten.upsample_nearest2d.vec" else list(node.args[2:4])
    exact = [b * factor for b, factor in zip(before, factors, strict=True)] == list(after)
    asked = zip(given or [], factors, strict=False)
    if not exact or any(scale is not None and scale != factor for scale, factor in asked):
        raise refused(node, " by factors that are not integers")
    scales = writer.constant(f"factors_{factors}", np.array([1, 1, *factors], np.float32))
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
