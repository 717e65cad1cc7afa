"""The table of operators that can be written in ONNX, and what their functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from acq.errors import RequestError
from acq.export.writer import Value, Writer
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


def moved(writer: Writer, node: fx.Node, kind: str, *extra: str, **attributes: Any) -> Value:
    """Write an operator that only moves values: on the bytes of a quantized value, otherwise on the floats."""
    value = writer.values[input_of(node)]
    if value.bytes is None:
        value = Value(writer.floats(input_of(node)))
    return changed(value, lambda name: writer.add(kind, [name, *extra], **attributes))


def changed(value: Value, change: Callable[[str], str]) -> Value:
    """Apply ``change`` to a value's bytes or, if it has none, to its floats."""
    if value.bytes is not None:
        return Value(None, change(value.bytes), value.qparams)
    assert value.floats is not None
    return Value(change(value.floats))


def tiles(node: fx.Node, before: list[int], after: list[int]) -> dict[str, Any]:
    """Kernel and stride of an adaptive pool with equal windows.

    Raises:
        RequestError: The windows differ.
    """
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise refused(node, f" from {before} to {after}, because its windows differ")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return {"kernel_shape": kernel, "strides": kernel}
