"""Sums, means and extremes over axes, places of extremes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import UnreadError, Value, host, integer, is_host, plain


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep)
    return x


_REDUCTIONS: dict[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: (x * x).sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod, "ReduceMean": np.mean,
}  # fmt: skip


@reads(*_REDUCTIONS, on_host=True)
def _reduce(node: Node, x: Value, axes: Value | None = None) -> Any:
    given, keep = node.given("axes", axes), bool(node.get("keepdims", 1))
    if not given and node.get("noop_with_empty_axes", 0):
        return x
    chosen = sorted({axis % x.ndim for axis in plain(given)}) if given else list(range(x.ndim))
    if not is_host(x):
        return _REDUCTIONS[node.kind](x, chosen, keep)
    if node.kind not in _OF_NUMBERS:
        raise UnreadError("computes with sizes")
    return host(_OF_NUMBERS[node.kind](x, axis=tuple(chosen), keepdims=keep))


@reads("ArgMax", "ArgMin")
def _place(node: Node, x: Tensor) -> Any:
    if node.get("select_last_index", 0):
        raise UnreadError("selects the last of equal values")
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return function(x, node.get("axis", 0), bool(node.get("keepdims", 1)))


@reads("TopK")
def _largest(node: Node, x: Tensor, count: Value | None = None) -> Any:
    found = node.given("k", count)
    if not found:
        raise UnreadError("has no number of values")
    (size,) = plain(found)
    largest = bool(node.get("largest", 1))
    return tuple(torch.topk(x, size, node.get("axis", -1), largest, bool(node.get("sorted", 1))))


@reads("CumSum")
def _running_sum(node: Node, x: Tensor, axis: Value) -> Any:
    along = integer(axis)
    x = x.flip(along) if node.get("reverse", 0) else x
    y = x.cumsum(along)
    y = y - x if node.get("exclusive", 0) else y
    return y.flip(along) if node.get("reverse", 0) else y
