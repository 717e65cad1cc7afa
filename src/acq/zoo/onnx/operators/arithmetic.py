"""Operators of several values: arithmetic, comparisons, choices and conversions of type."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import Host, UnreadError, Value, host, is_host, matched, require_small, tensor

_INTEGERS = {
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32,
    TensorProto.INT64, TensorProto.UINT64,
}  # fmt: skip
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _is_integral(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if is_host(value):
        return value.dtype.kind in "iub" or (
            value.dtype == object and not any(isinstance(n, float) for n in value.flat)
        )
    return not isinstance(value, float)


def _divided(x: Any, y: Any) -> Any:
    if not (_is_integral(x) and _is_integral(y)):
        return x / y
    if is_host(x):
        if x.dtype != object and y.dtype != object:
            return (np.sign(x) * np.sign(y)) * (np.abs(x) // np.maximum(np.abs(y), 1))  # towards zero
        return x // y
    return torch.div(x, y, rounding_mode="trunc")


def _modulo(node: Node, x: Any, y: Any) -> Any:
    if is_host(x):
        return np.fmod(x, y) if node.get("fmod", 0) else x % y
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


def _power(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and isinstance(y, float) and y.is_integer():
        y = int(y)
    return x**y


def _logical(tensors: Callable[..., Any], numbers: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, y: Any) -> Any:
        if is_host(x):
            return numbers(x.astype(bool), y.astype(bool))
        x, y = (value if isinstance(value, Tensor) else torch.tensor(bool(value)) for value in (x, y))
        return tensors(x, y)

    return run


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _divided, "Pow": _power,
    "Equal": operator.eq, "Less": operator.lt, "Greater": operator.gt, "LessOrEqual": operator.le,
    "GreaterOrEqual": operator.ge, "And": _logical(torch.logical_and, np.logical_and),
    "Or": _logical(torch.logical_or, np.logical_or), "Xor": _logical(torch.logical_xor, np.logical_xor),
}  # fmt: skip


def _on_both(function: Callable[[Any, Any], Any], x: Value, y: Value) -> Any:
    first, second = matched((x, y))
    if is_host(first) and is_host(second):
        require_small(np.broadcast_shapes(first.shape, second.shape))
        return host(function(first, second))
    return function(first, second)


def _register(kind: str, function: Callable[[Any, Any], Any]) -> None:
    @reads(kind, on_host=True)
    def run(_: Node, x: Value, y: Value) -> Any:
        return _on_both(function, x, y)


for _kind, _function in _BINARY.items():
    _register(_kind, _function)


@reads("Mod", on_host=True)
def _mod(node: Node, x: Value, y: Value) -> Any:
    return _on_both(lambda first, second: _modulo(node, first, second), x, y)


def _extreme(largest: bool) -> Callable[[Any, Any], Any]:
    def run(x: Any, y: Any) -> Any:
        if is_host(x):
            return np.maximum(x, y) if largest else np.minimum(x, y)
        if not isinstance(x, Tensor):
            x, y = y, x
        if isinstance(y, Tensor):
            return torch.maximum(x, y) if largest else torch.minimum(x, y)
        return x.clamp_min(y) if largest else x.clamp_max(y)

    return run


@reads("Max", "Min", on_host=True)
def _extremes(node: Node, *values: Value) -> Any:
    return reduce(lambda x, y: _on_both(_extreme(node.kind == "Max"), x, y), values)


@reads("Sum", "Mean", on_host=True)
def _sum(node: Node, *values: Value) -> Any:
    total = reduce(lambda x, y: _on_both(operator.add, x, y), values)
    return total if node.kind == "Sum" else total / len(values)


@reads("Where", on_host=True)
def _where(_: Node, condition: Value, x: Value, y: Value) -> Any:
    if is_host(condition) and is_host(x) and is_host(y):
        require_small(np.broadcast_shapes(condition.shape, x.shape, y.shape))
        return host(np.where(condition.astype(bool), x, y))
    device = next(value.device for value in (condition, x, y) if isinstance(value, Tensor))
    chosen = tensor(condition, device).bool()
    return torch.where(chosen, *(tensor(value, device) for value in (x, y)))


@reads("Cast", "CastLike", on_host=True)
def _cast(node: Node, x: Value, like: Value | None = None) -> Any:
    target = node.get("to", TensorProto.FLOAT) if like is None else _type_of(like)
    if target not in _FLOATS and target not in _INTEGERS and target != TensorProto.BOOL:
        raise UnreadError("converts to a type that is not read")
    if is_host(x):
        return _cast_numbers(x, target)
    if target in _FLOATS:
        return x.float()
    return x.bool() if target == TensorProto.BOOL else x.long()


def _type_of(like: Value) -> int:
    if isinstance(like, Tensor):
        kind = TensorProto.FLOAT if like.is_floating_point() else TensorProto.INT64
        return TensorProto.BOOL if like.dtype == torch.bool else kind
    return {"f": TensorProto.FLOAT, "b": TensorProto.BOOL}.get(like.dtype.kind, TensorProto.INT64)


def _cast_numbers(x: Host, target: int) -> Host:
    if x.dtype == object:  # sizes: a float of one has its value
        return x
    if target in _FLOATS:
        return x.astype(np.float32)
    return x.astype(bool if target == TensorProto.BOOL else np.int64)
