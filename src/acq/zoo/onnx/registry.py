"""The registry of operators that can be read: one function per operator, by its name in the ONNX standard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from acq.zoo.onnx.values import Host, UnreadError, Value, host, integers, is_host, stays_on_host, tensor

HOST = "host"  # in place of the name of a weight: an input whose constants are numbers of the host
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Node:
    """A node of an ONNX graph.

    Attributes:
        kind: The operator.
        name: As messages show it.
        inputs: Names of values; empty for those that are left out.
        outputs: Names of values.
        attributes: Numbers, lists of numbers, texts and arrays.
        opset: The version of the standard whose meaning the operator has.
        cut: The value that images decide and that the graph can be cut at to leave the node out; empty if none.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    cut: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where the node does not have it."""
        return self.attributes.get(name, default)

    def given(self, name: str, value: Value | None) -> list[Any] | None:
        """Integers that are an attribute in old versions and an input in new ones; None where neither is there."""
        if name in self.attributes:
            found = self.attributes[name]
            return list(found) if isinstance(found, list | tuple) else [found]
        return None if value is None else integers(value)


@dataclass(frozen=True)
class Operator:
    """How an operator is read.

    Attributes:
        run: Takes the node and its inputs, None for those that are left out; returns a value or a tuple of values.
        parameters: Names of the inputs that are weights, by place; empty for others, and ``HOST``.
        on_host: Whether ``run`` computes with numbers of the host too; otherwise its first input is always a tensor.
    """

    run: Callable[..., Any]
    parameters: tuple[str, ...]
    on_host: bool

    def __call__(self, node: Node, values: Sequence[Value | None]) -> tuple[Any, ...]:
        """Compute a node's outputs.

        Raises:
            UnreadError: The operator cannot be computed so.
        """
        values = [self._as_weight(place, value, values) for place, value in enumerate(values)]
        known = [value for value in values if value is not None]
        hosted = bool(known) and all(map(is_host, known)) and not self.on_host
        if hosted:
            values = [tensor(known[0], torch.device("cpu")), *values[1:]]
        found = self.run(node, *values)
        results = found if isinstance(found, tuple) else (found,)
        if hosted:
            return tuple(result.numpy() for result in results)
        return tuple(host(result) if is_host(result) and result.dtype == object else result for result in results)

    def _as_weight(self, place: int, value: Value | None, values: Sequence[Value | None]) -> Value | None:
        """An input; a tensor where it is a weight."""
        if not is_host(value) or self.weight_at(place) in ("", HOST):
            return value
        images = values[0]
        return tensor(value, images.device if isinstance(images, Tensor) else torch.device("cpu"))

    def weight_at(self, place: int) -> str:
        """The name of the weight that the input at a place is; empty if it is none."""
        return self.parameters[place] if place < len(self.parameters) else ""


OPERATORS: dict[str, Operator] = {}


def reads(*kinds: str, parameters: tuple[str, ...] = (), on_host: bool = False) -> Callable[[Function], Function]:
    """Register a function for operators; ``parameters`` and ``on_host`` as in ``Operator``."""

    def register(function: Function) -> Function:
        for kind in kinds:
            OPERATORS[kind] = Operator(function, parameters, on_host)
        return function

    return register


def constant_value(operator: Operator, place: int, constant: Host, device: torch.device) -> Value:
    """A constant as the operator takes it at a place: weights and tables of floats are tensors."""
    name = operator.weight_at(place)
    if name == HOST or (not name and stays_on_host(constant)):
        return constant
    return tensor_of(constant).to(device)


def tensor_of(constant: Host) -> Tensor:
    """A constant as a tensor with its own memory: floats in 32 bits."""
    if constant.dtype == object:
        raise UnreadError("computes with the number of images")
    array = constant.astype("float32") if constant.dtype.kind == "f" else constant.copy()
    return torch.from_numpy(array)


def only(node: Node, count: int = 1) -> None:
    """Refuse a node of which more outputs are named than are computed.

    Raises:
        UnreadError: They are.
    """
    if any(node.outputs[count:]):
        raise UnreadError(f"returns {len(node.outputs)} values, of which {count} can be read")
