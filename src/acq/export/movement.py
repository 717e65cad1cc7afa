"""How operators that reshape, cut and pad are written in ONNX: on bytes where the value is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import fx

from acq.export.registry import (
    argument,
    axis_of,
    changed,
    gathered,
    input_of,
    moved,
    refused,
    require_first_only,
    require_one_free,
    values_of,
    writes,
)
from acq.export.writer import Delayed, Value, Writer, byte_of
from acq.network.names import name_of
from acq.network.operators import PADS, operator_of
from acq.quantization.quantizers import ActivationQuantizer

_END = 2**63 - 1  # ONNX's bound of a slice without an end
_SIZE = "aten.sym_size.int"
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@writes(
    "reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
    "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default",
)  # fmt: skip
def _reshape(writer: Writer, node: fx.Node) -> Value:
    return moved(writer, node, "Reshape", _shape(writer, node))


def _shape(writer: Writer, node: fx.Node) -> str:
    """The name of a node's shape as a constant."""
    shape = node.meta["shape"]
    require_one_free(node, shape)
    return writer.integers(shape)


@writes("contiguous.default")
def _copy(writer: Writer, node: fx.Node) -> Value:
    return values_of(writer, input_of(node))


@writes("expand.default")
def _expand(writer: Writer, node: fx.Node) -> Value:
    """Repeat axes of size 1. A size that does not change is 1 in ONNX."""
    after = list(node.meta["shape"])
    before = [1] * (len(after) - len(input_of(node).meta["shape"])) + list(input_of(node).meta["shape"])
    sizes = [1 if new == old else new for new, old in zip(after, before, strict=True)]
    if min(sizes) >= 0:
        return moved(writer, node, "Expand", writer.integers(sizes))
    return _for_each_image(writer, node, writer.floats(input_of(node)), sizes)


def _for_each_image(writer: Writer, node: fx.Node, floats: str, sizes: list[int]) -> Value:
    """Add zeros of the wanted shape, made from a value that has as many images.

    OpenVINO computes convolutions wrongly in a file that asks a value for its shape.
    """
    axis = sizes.index(-1)
    size = argument(node, 1)[axis]
    given = size.args[0] if isinstance(size, fx.Node) and operator_of(size) == _SIZE else None
    if not isinstance(size, fx.Node) or not isinstance(given, fx.Node) or given not in writer.values:
        raise refused(node, " to a number that depends on the batch")
    first: list[int] = [1] * len(given.meta["shape"])
    if sizes.count(-1) > 1 or size.args[1] != 0:
        raise refused(node, " along several axes, or by another size than the number of images")
    bounds = ([0] * (len(first) - 1), first[1:], range(1, len(first)))
    one = writer.add("Slice", [writer.floats(given), *map(writer.integers, bounds)])
    zeros = writer.add("Mul", [one, writer.number(0.0)])
    zeros = writer.add("Reshape", [zeros, writer.integers([-1 if place == axis else 1 for place in range(len(sizes))])])
    found = writer.add("Add", [floats, zeros])
    others = [size if size >= 0 else 1 for size in sizes]
    return Value(found if max(others) == 1 else writer.add("Expand", [found, writer.integers(others)]))


@writes("repeat.default")
def _repeat(writer: Writer, node: fx.Node) -> Value:
    times = [count if isinstance(count, int) else -1 for count in argument(node, 1)]
    shape = [1] * (len(times) - len(input_of(node).meta["shape"])) + list(input_of(node).meta["shape"])
    if any(count < 0 and size != 1 for count, size in zip(times, shape, strict=True)):
        raise refused(node, " by a number that depends on the batch, along an axis of several values")
    value = Value(writer.floats(input_of(node))) if min(times) < 0 else values_of(writer, input_of(node))
    if len(shape) > len(input_of(node).meta["shape"]):
        wider = writer.integers(shape)
        value = changed(value, lambda name: writer.add("Reshape", [name, wider]))
    fixed = [1 if count < 0 else count for count in times]
    if any(count != 1 for count in fixed):
        value = changed(value, lambda name: writer.add("Tile", [name, writer.integers(fixed)]))
    if min(times) >= 0:
        return value
    return _for_each_image(writer, node, writer.floats_of(value), [-1 if count < 0 else 1 for count in times])


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
    before, behind = _pads(node, 0), _pads(node, 1)
    if mode == "circular":
        return gathered(writer, values_of(writer, source), dict(_circles(node, before, behind)))
    pads = writer.integers([*before, *behind])
    if mode != "constant":
        return moved(writer, node, "Pad", pads, mode=_PAD_MODES[mode])
    qparams = writer.values[source].qparams
    if fill == 0 and qparams is not None:
        return moved(writer, node, "Pad", pads, qparams[1])
    return Value(None, delayed=Delayed((writer.values[source],), _padding(writer, pads, fill), name_of(node)))


def _padding(writer: Writer, pads: str, fill: float) -> Callable[[list[str], ActivationQuantizer | None], str]:
    """Pad floats with a value, or bytes with its byte: OpenVINO takes other values than zero for the byte 0."""

    def write(names: list[str], quantizer: ActivationQuantizer | None) -> str:
        value = writer.number(fill) if quantizer is None else writer.byte(byte_of(fill, quantizer))
        return writer.add("Pad", [*names, pads, value])

    return write


def _circles(node: fx.Node, before: list[int], behind: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The places of a circular pad along each axis that it changes; engines differ in ONNX's mode for it."""
    for axis, (first, last) in enumerate(zip(before, behind, strict=True)):
        if first or last:
            size = input_of(node).meta["shape"][axis_of(node, axis)]
            yield axis, [place % size for place in range(-first, size + last)]


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


@writes("amax.default", "amin.default", "max.dim", "min.dim")
def _extreme(writer: Writer, node: fx.Node) -> Value | list[Value]:
    """The largest or the smallest values along axes. Where indices come with them, these are not written."""
    name = operator_of(node)
    pair_of_results = name.endswith(".dim")
    if pair_of_results:
        require_first_only(node)
    axes = argument(node, 1, [])
    axes = [axes] if isinstance(axes, int) else list(axes) or list(range(len(input_of(node).meta["shape"])))
    kind = "ReduceMax" if "max" in name else "ReduceMin"
    value = moved(writer, node, kind, writer.integers(axes), keepdims=int(bool(argument(node, 2, False))))
    return [value] if pair_of_results else value
