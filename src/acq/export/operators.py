"""How each operator of a student is written in ONNX. Add one with ``@writes("name.overload")``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from acq.errors import RequestError
from acq.export.writer import Value, Writer
from acq.quantization.plan import operator_of
from acq.quantization.student import pair

Write = Callable[[Writer, fx.Node], Any]
OPERATORS: dict[str, Write] = {}


def writes(*operators: str) -> Callable[[Write], Write]:
    """Register how operators of ATen are written: a function of the writer and the node, which gives its value."""

    def register(write: Write) -> Write:
        OPERATORS.update({f"aten.{name}": write for name in operators})
        return write

    return register


def refused(node: fx.Node, why: str = "") -> RequestError:
    """The error of a node that cannot be written."""
    operator = operator_of(node).removeprefix("aten.")
    return RequestError(
        f"operator {operator} of node {node.name} cannot be exported to ONNX{why}; "
        "the run folder itself can be evaluated and loaded as it is"
    )


# operators on floats, whose arguments are tensors and numbers alone


def _computes(kind: str, *operators: str, **attributes: Any) -> None:
    @writes(*operators)
    def write(writer: Writer, node: fx.Node) -> Value:
        return Value(writer.add(kind, [_operand(writer, value) for value in node.args], **attributes))


_computes("Mul", "mul.Tensor", "mul.Scalar")
_computes("Div", "div.Tensor", "div.Scalar")
_computes("Sigmoid", "sigmoid.default")
_computes("Tanh", "tanh.default")
_computes("HardSwish", "hardswish.default")
_computes("HardSigmoid", "hardsigmoid.default", alpha=1 / 6, beta=0.5)
_computes("Mish", "mish.default")
_computes("Selu", "selu.default")


@writes("silu.default")
def _silu(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(_source(node))
    return Value(writer.add("Mul", [x, writer.add("Sigmoid", [x])]))


@writes("gelu.default")
def _gelu(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(_source(node))
    return Value(writer.add("Gelu", [x], approximate=node.kwargs.get("approximate", "none")))


@writes("leaky_relu.default")
def _leaky_relu(writer: Writer, node: fx.Node) -> Value:
    return Value(writer.add("LeakyRelu", [writer.floats(_source(node))], alpha=float(_given(node, 1, 0.01))))


@writes("elu.default", "celu.default")
def _elu(writer: Writer, node: fx.Node) -> Value:
    if len(node.args) > 2:
        raise refused(node, " with scales of its own")
    kind = "Elu" if operator_of(node) == "aten.elu.default" else "Celu"
    return Value(writer.add(kind, [writer.floats(_source(node))], alpha=float(_given(node, 1, 1.0))))


@writes("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar")
def _sum(writer: Writer, node: fx.Node) -> Value:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        raise refused(node, " with a factor of its own (alpha)")
    operands = [_operand(writer, value) for value in node.args]
    name = operator_of(node)
    kind = "Add" if "add" in name else "Sub"
    return Value(writer.add(kind, operands[::-1] if "rsub" in name else operands))


# rectifiers: bounds that the quantizer after them applies


@writes("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _rectifier(writer: Writer, node: fx.Node) -> Value:
    low, high = _BOUNDS[operator_of(node)](node)
    value = writer.values[_source(node)]
    if (low, high) == (0, None) and value.grid is not None:  # stays on its grid
        bounds = value.grid[1], writer.constant("byte_255", np.uint8(255))
        return _with(value, lambda name: writer.add("Clip", [name, *bounds]))
    name = writer.floats(_source(node))
    return Value(name, bounds=(-math.inf if low is None else float(low), math.inf if high is None else float(high)))


_BOUNDS: dict[str, Callable[[fx.Node], tuple[Any, Any]]] = {
    "aten.relu.default": lambda _: (0, None),
    "aten.relu6.default": lambda _: (0, 6),
    "aten.hardtanh.default": lambda node: (_given(node, 1, -1), _given(node, 2, 1)),
    "aten.clamp.default": lambda node: (_given(node, 1), _given(node, 2)),
    "aten.clamp_min.default": lambda node: (_given(node, 1), None),
    "aten.clamp_max.default": lambda node: (None, _given(node, 1)),
}


# pools


@writes("avg_pool2d.default")
def _average(writer: Writer, node: fx.Node) -> Value:
    kernel, padding = pair(_given(node, 1)), pair(_given(node, 3, 0))
    rounded_up, counted = bool(_given(node, 4, False)), bool(_given(node, 5, True)) and any(padding)
    if len(node.args) > 6:
        raise refused(node, " with a divisor of its own")
    if rounded_up and counted:  # engines differ in what the last window is divided by
        raise refused(node, " with ceil_mode and padding that counts")
    return Value(
        writer.add(
            "AveragePool",
            [writer.floats(_source(node))],
            kernel_shape=kernel,
            strides=pair(_given(node, 2) or kernel),
            pads=padding * 2,
            ceil_mode=int(rounded_up),
            count_include_pad=int(counted),
        )
    )


@writes("adaptive_avg_pool2d.default")
def _adaptive_average(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(_source(node))
    before, after = (list(n.meta["shape"][2:]) for n in (_source(node), node))
    if after == [1, 1]:
        return Value(writer.add("GlobalAveragePool", [x]))
    return Value(writer.add("AveragePool", [x], **_tiles(node, before, after)))


@writes("adaptive_max_pool2d.default")
def _adaptive_greatest(writer: Writer, node: fx.Node) -> list[Value]:
    """The greatest values, which ``getitem`` takes; where they were is not written."""
    taken, *others = node.users
    if others or taken.args[1] != 0:
        raise refused(node, " for its indices")
    before, after = list(_source(node).meta["shape"][2:]), list(taken.meta["shape"][2:])
    return [_moved(writer, node, "MaxPool", **_tiles(node, before, after))]


@writes("mean.dim")
def _mean(writer: Writer, node: fx.Node) -> Value:
    source = _source(node)
    rank = len(source.meta["shape"])
    axes = sorted(axis % rank for axis in _given(node, 1))
    keep = bool(_given(node, 2, False))
    if rank == 4 and axes == [2, 3]:  # by the operator that has an integer kernel
        pooled = writer.add("GlobalAveragePool", [writer.floats(source)])
        return Value(pooled if keep else writer.add("Flatten", [pooled], axis=1))
    return Value(writer.add("ReduceMean", [writer.floats(source), writer.integers(axes)], keepdims=int(keep)))


@writes("max_pool2d.default")
def _greatest(writer: Writer, node: fx.Node) -> Value:
    kernel = pair(_given(node, 1))
    return _moved(
        writer,
        node,
        "MaxPool",
        kernel_shape=kernel,
        strides=pair(_given(node, 2) or kernel),
        pads=pair(_given(node, 3, 0)) * 2,
        dilations=pair(_given(node, 4, 1)),
        ceil_mode=int(_given(node, 5, False)),
    )


# movers: on bytes where the value has some


@writes("reshape.default", "view.default", "flatten.using_ints", "squeeze.dim", "squeeze.dims", "unsqueeze.default")
def _reshaped(writer: Writer, node: fx.Node) -> Value:
    return _moved(writer, node, "Reshape", writer.integers(node.meta["shape"]))


@writes("permute.default")
def _permuted(writer: Writer, node: fx.Node) -> Value:
    rank = len(node.meta["shape"])
    return _moved(writer, node, "Transpose", perm=[axis % rank for axis in _given(node, 1)])


@writes("transpose.int", "t.default")
def _transposed(writer: Writer, node: fx.Node) -> Value:
    order = list(range(len(node.meta["shape"])))
    first, second = _given(node, 1, 0), _given(node, 2, 1)
    order[first], order[second] = order[second], order[first]
    return _moved(writer, node, "Transpose", perm=order)


@writes("slice.Tensor")
def _sliced(writer: Writer, node: fx.Node) -> Value:
    axis = _given(node, 1, 0)
    start, end, step = _given(node, 2) or 0, _given(node, 3), _given(node, 4, 1)
    bounds = [start, 2**63 - 1 if end is None else end, axis, step]
    if not all(isinstance(bound, int) for bound in bounds):
        raise refused(node, " with a bound that depends on the batch")
    return _moved(writer, node, "Slice", *(writer.integers([bound]) for bound in bounds))


@writes("select.int")
def _selected(writer: Writer, node: fx.Node) -> Value:
    axis, index = _given(node, 1), _given(node, 2)
    picked = (writer.integers([bound]) for bound in (index, 2**63 - 1 if index == -1 else index + 1, axis))
    cut = _moved(writer, node, "Slice", *picked)
    shape = writer.integers(node.meta["shape"])
    return _with(cut, lambda name: writer.add("Reshape", [name, shape]))


@writes("pad.default", "constant_pad_nd.default")
def _padded(writer: Writer, node: fx.Node) -> Value:
    if node in writer.padded:
        value = writer.values[_source(node)]
        return replace(value if value.bytes is not None else Value(writer.floats(_source(node))), pads=pads_of(node))
    mode, fill = _mode_and_fill(node)
    if mode not in ("constant", "reflect", "replicate"):
        raise refused(node, f" in mode {mode}")
    pads = writer.integers([*_around(node, 0), *_around(node, 1)])
    if mode != "constant":
        return _moved(writer, node, "Pad", pads, mode={"replicate": "edge"}.get(mode, mode))
    grid = writer.values[_source(node)].grid
    if fill == 0 and grid is not None:
        return _moved(writer, node, "Pad", pads, grid[1])
    return Value(writer.add("Pad", [writer.floats(_source(node)), pads, writer.number(fill)]))


def pads_of(node: fx.Node) -> tuple[int, ...]:
    """Zeros that a node puts around images of features: top, left, bottom, right; () where it does something else."""
    if node.op != "call_function" or not operator_of(node).endswith(
        ("aten.pad.default", "aten.constant_pad_nd.default")
    ):
        return ()
    before, behind = _around(node, 0), _around(node, 1)
    plain = _mode_and_fill(node) == ("constant", 0) and len(before) == 4 and not any(before[:2] + behind[:2])
    return (*before[2:], *behind[2:]) if plain and min(before + behind) >= 0 else ()


def _mode_and_fill(node: fx.Node) -> tuple[str, float]:
    is_pad = operator_of(node) == "aten.pad.default"
    mode = _given(node, 2, "constant") if is_pad else "constant"
    fill = node.kwargs.get("value", _given(node, 3 if is_pad else 2)) or 0
    return mode, float(fill)


def _around(node: fx.Node, side: int) -> list[int]:
    """How much is put before (``side`` 0) or behind (1) each axis; the operator's list has the last axis first."""
    asked = list(_given(node, 1))
    return [0] * (len(node.meta["shape"]) - len(asked) // 2) + asked[side::2][::-1]


@writes("cat.default", "concat.default")
def _joined(writer: Writer, node: fx.Node) -> Value:
    parts: Any = _given(node, 0)
    axis = _given(node, 1, 0)
    values = [writer.values[part] for part in parts]
    names = [value.bytes for value in values]
    if len({value.grid for value in values}) == 1 and None not in names:
        return Value(None, writer.add("Concat", [str(name) for name in names], axis=axis), values[0].grid)
    return Value(writer.add("Concat", [writer.floats(part) for part in parts], axis=axis))


@writes("split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int")
def _split(writer: Writer, node: fx.Node) -> list[Value]:
    """Pieces, of which each ``getitem`` takes one."""
    source = _source(node)
    if operator_of(node) == "aten.unbind.int":
        raise refused(node)
    axis = _given(node, 2, 0) % len(source.meta["shape"])
    whole, asked = source.meta["shape"][axis], _given(node, 1)
    if isinstance(asked, int):
        size = math.ceil(whole / asked) if "chunk" in operator_of(node) else asked
        asked = [min(size, whole - start) for start in range(0, whole, size)]
    value = writer.values[source]
    name = value.bytes if value.bytes is not None else writer.floats(source)
    pieces = writer.split(name, axis, asked)
    return [Value(piece) if value.bytes is None else Value(None, piece, value.grid) for piece in pieces]


@writes("upsample_nearest2d.vec", "upsample_nearest2d.default")
def _nearest(writer: Writer, node: fx.Node) -> Value:
    before, after = _source(node).meta["shape"][2:], node.meta["shape"][2:]
    factors = [a // b for a, b in zip(after, before, strict=True)]
    given = _given(node, 2) if operator_of(node).endswith("vec") else list(node.args[2:4])
    exact = [b * factor for b, factor in zip(before, factors, strict=True)] == list(after)
    if not exact or any(
        asked is not None and asked != factor for asked, factor in zip(given or [], factors, strict=False)
    ):
        raise refused(node, " by factors that are no integers")
    scales = writer.constant(f"factors_{factors}", np.array([1, 1, *factors], np.float32))
    return _moved(
        writer,
        node,
        "Resize",
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _moved(writer: Writer, node: fx.Node, kind: str, *extra: str, **attributes: Any) -> Value:
    source = _source(node)
    value = writer.values[source]
    if value.bytes is None:
        value = Value(writer.floats(source))
    return _with(value, lambda name: writer.add(kind, [name, *extra], **attributes))


def _with(value: Value, change: Callable[[str], str]) -> Value:
    """The value that has ``change`` done to its bytes or, where it has none, to its floats."""
    if value.bytes is not None:
        return Value(None, change(value.bytes), value.grid)
    assert value.floats is not None
    return Value(change(value.floats))


def _operand(writer: Writer, value: Any) -> str:
    return writer.floats(value) if isinstance(value, fx.Node) else writer.number(float(value))


def _source(node: fx.Node) -> fx.Node:
    value = _given(node, 0)
    assert isinstance(value, fx.Node)
    return value


def _given(node: fx.Node, place: int, otherwise: Any = None) -> Any:
    """A positional argument, or what the operator takes where it is not given."""
    return node.args[place] if len(node.args) > place else otherwise


def _tiles(node: fx.Node, before: list[int], after: list[int]) -> dict[str, Any]:
    """Kernel and stride of an adaptive pool whose windows are all alike."""
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise refused(node, f" from {before} to {after}, whose windows differ")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return {"kernel_shape": kernel, "strides": kernel}
