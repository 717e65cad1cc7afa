"""The table of operators that can be written in ONNX, and what their functions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import fx

from acq.errors import RequestError
from acq.export.writer import NO_PADS, Value, Writer
from acq.network.names import name_of
from acq.network.operators import operator_of

Write = Callable[[Writer, fx.Node], Any]


class NoFormError(RequestError):
    """An operator has no form of its own in a file with these arguments."""


OPERATORS: dict[str, Write] = {}


def writes(*operators: str) -> Callable[[Write], Write]:
    """Register how operators of ATen are written.

    The decorated function takes the writer and the node. It returns the node's value, or a list of values for an
    operator that returns a tuple.

    Args:
        operators: Names such as ``relu.default``.
    """

    def register(write: Write) -> Write:
        OPERATORS.update({f"aten.{name}": write for name in operators})
        return write

    return register


def refused(node: fx.Node, why: str = "") -> NoFormError:
    """The error of a node that cannot be written; ``why`` continues the sentence."""
    operator = operator_of(node).removeprefix("aten.")
    return NoFormError(
        f"operator {operator} of node {name_of(node)} cannot be exported to ONNX{why}; "
        "evaluate or load the run folder instead"
    )


def require_one_free(node: fx.Node, shape: Sequence[int]) -> None:
    """Refuse a shape of which two sizes depend on the number of images."""
    if sum(size < 0 for size in shape) > 1:
        raise refused(node, " with two sizes that depend on the batch")


def argument(node: fx.Node, place: int, default: Any = None) -> Any:
    """A positional argument, or the operator's default where it is left out."""
    return node.args[place] if len(node.args) > place else default


def input_of(node: fx.Node) -> fx.Node:
    """The first argument, which is a node."""
    value = argument(node, 0)
    assert isinstance(value, fx.Node)
    return value


def operand(writer: Writer, value: Any) -> str:
    """The name of an operand's floats: a node's, or a constant for a number."""
    return writer.floats(value) if isinstance(value, fx.Node) else writer.number(float(value))


def axis_of(node: fx.Node, axis: Any) -> int:
    """An axis of a node's input, counted from the front.

    Raises:
        RequestError: It is no number, or the size of that axis depends on the number of images.
    """
    shape = input_of(node).meta["shape"]
    if not isinstance(axis, int) or not shape or shape[axis] < 0:
        raise refused(node, " along an axis of unknown size")
    return axis % len(shape)


def values_of(writer: Writer, node: fx.Node) -> Value:
    """A node's bytes if it is quantized, otherwise its floats."""
    value = writer.values[node]
    return value if value.bytes is not None else Value(writer.floats(node))


def moved(writer: Writer, node: fx.Node, kind: str, *extra: str, **attributes: Any) -> Value:
    """Write an operator that only moves values: on the bytes of a quantized value, otherwise on the floats."""
    return changed(values_of(writer, input_of(node)), lambda name: writer.add(kind, [name, *extra], **attributes))


def changed(value: Value, change: Callable[[str], str]) -> Value:
    """Apply ``change`` to a value's bytes or, if it has none, to its floats."""
    if value.bytes is not None:
        return Value(None, change(value.bytes), value.qparams)
    assert value.floats is not None
    return Value(change(value.floats))


def gathered(writer: Writer, value: Value, places: Mapping[int, Sequence[int]]) -> Value:
    """Select the given places along each axis, in that order."""
    for axis, chosen in places.items():
        indices = writer.integers(chosen)
        value = changed(value, partial(_gather, writer, indices, axis))
    return value


def _gather(writer: Writer, indices: str, axis: int, name: str) -> str:
    return writer.add("Gather", [name, indices], axis=axis)


def require_first_only(node: fx.Node) -> None:
    """Refuse a node of several results of which others than the first are used.

    Raises:
        RequestError: They are, or none is used.
    """
    if [user.args[1] for user in node.users] != [0]:
        raise refused(node, " for its indices")


def convolution_attributes(
    kernel: Sequence[int],
    *,
    pads: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> dict[str, Any]:
    """The attributes of an ONNX convolution that differ from the defaults.

    Args:
        kernel: Height and width.
        pads: Zeros: top, left, bottom, right.
        stride: Down and across.
        dilation: Down and across.
        groups: Number of groups of channels.
    """
    values: dict[str, tuple[Any, Any]] = {
        "strides": (stride, (1, 1)),
        "dilations": (dilation, (1, 1)),
        "group": (groups, 1),
        "pads": (tuple(pads), NO_PADS),
    }
    return {"kernel_shape": list(kernel), **{name: value for name, (value, usual) in values.items() if value != usual}}
