"""How operators that join tensors or take them apart are written in ONNX: on bytes where they have one quantizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from acq.export.registry import argument, axis_of, changed, input_of, require_one_free, values_of, writes
from acq.export.writer import Delayed, Value, Writer
from acq.network.names import name_of
from acq.network.operators import operator_of
from acq.quantization.quantizers import ActivationQuantizer


@writes("cat.default", "concat.default")
def _concat(writer: Writer, node: fx.Node) -> Value:
    parts: Any = argument(node, 0)
    return _joined(writer, parts, lambda names: writer.add("Concat", names, axis=argument(node, 1, 0)))


@writes("stack.default")
def _stack(writer: Writer, node: fx.Node) -> Value:
    parts: Any = argument(node, 0)
    axis = argument(node, 1, 0) % len(node.meta["shape"])
    wider = writer.integers([axis])

    def write(names: Sequence[str]) -> str:
        return writer.add("Concat", [writer.add("Unsqueeze", [name, wider]) for name in names], axis=axis)

    return _joined(writer, parts, write)


@writes("maximum.default", "minimum.default", "max.other", "min.other")
def _larger(writer: Writer, node: fx.Node) -> Value:
    """The larger or the smaller of two tensors: of bytes, which engines compare as integers, behind one quantizer."""
    parts: Any = node.args[:2]
    kind = "Max" if "max" in operator_of(node) else "Min"
    if _has_one_quantizer(writer, parts):
        return _joined(writer, parts, lambda names: writer.add(kind, names))

    def write(names: list[str], _: ActivationQuantizer | None) -> str:
        return writer.add(kind, names)

    return Value(None, delayed=Delayed(tuple(writer.values[part] for part in parts), write, name_of(node)))


def _joined(writer: Writer, parts: Sequence[fx.Node], write: Callable[[list[str]], str]) -> Value:
    if _has_one_quantizer(writer, parts):
        values = [writer.values[part] for part in parts]
        return Value(None, write([str(value.bytes) for value in values]), values[0].qparams)
    return Value(write([writer.floats(part) for part in parts]))


def _has_one_quantizer(writer: Writer, parts: Sequence[fx.Node]) -> bool:
    found = {writer.values[part].qparams for part in parts}
    return len(found) == 1 and None not in found


@writes("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default")
def _split(writer: Writer, node: fx.Node) -> list[Value]:
    """The pieces; each ``getitem`` selects one."""
    axis = axis_of(node, argument(node, 2, 0))
    whole, sizes = input_of(node).meta["shape"][axis], argument(node, 1)
    if isinstance(sizes, int):
        size = math.ceil(whole / sizes) if operator_of(node) == "aten.chunk.default" else sizes
        sizes = [min(size, whole - start) for start in range(0, whole, size)]
    return _pieces(writer, input_of(node), axis, sizes)


@writes("unbind.int")
def _unbind(writer: Writer, node: fx.Node) -> list[Value]:
    axis = axis_of(node, argument(node, 1, 0))
    shape = list(input_of(node).meta["shape"])
    require_one_free(node, shape)
    pieces = _pieces(writer, input_of(node), axis, [1] * shape[axis])
    narrow = writer.integers(shape[:axis] + shape[axis + 1 :])
    return [changed(piece, lambda name: writer.add("Reshape", [name, narrow])) for piece in pieces]


def _pieces(writer: Writer, source: fx.Node, axis: int, sizes: Sequence[int]) -> list[Value]:
    value = values_of(writer, source)
    name = value.bytes if value.bytes is not None else writer.floats(source)
    pieces = writer.split(name, axis, sizes)
    return [Value(piece) if value.bytes is None else Value(None, piece, value.qparams) for piece in pieces]
