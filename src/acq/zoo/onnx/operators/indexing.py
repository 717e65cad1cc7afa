"""Operators that select values by place, or put values in places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import (
    Host,
    UnreadError,
    Value,
    host,
    integer,
    integers,
    is_host,
    matched,
    plain,
    require_small,
    tensor,
)


@reads("Slice", on_host=True)
def _slice(
    node: Node, x: Value, starts: Value | None = None, ends: Value | None = None, axes: Value | None = None,
    steps: Value | None = None,
) -> Any:  # fmt: skip
    first, last = node.given("starts", starts) or [], node.given("ends", ends) or []
    along = node.given("axes", axes) or list(range(len(first)))
    strides = node.given("steps", steps) or [1] * len(first)
    for begin, end, axis, step in zip(first, last, plain(along), plain(strides), strict=True):
        x = _sliced(x, begin, end, axis % x.ndim, step)
    return x


def _sliced(x: Value, begin: Any, end: Any, axis: int, step: int) -> Value:
    if step == 0:
        raise UnreadError("has steps of zero")
    front = (slice(None),) * axis
    if step > 0:
        return x[(*front, slice(begin, end, step))]
    size = plain([x.shape[axis]])[0]
    begin, end = plain([begin, end])
    places = _backwards(begin, end, step, size)
    if is_host(x):
        return np.take(x, places, axis)
    if len(places) == size:
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


def _backwards(begin: int, end: int, step: int, size: int) -> list[int]:
    """Places of a slice with negative steps, where numbers below zero count from the end."""
    first = min(begin + size if begin < 0 else begin, size - 1)
    last = max(end + size if end < 0 else end, -1)
    return list(range(first, last, step))


@reads("Gather", on_host=True)
def _gather(node: Node, x: Value, places: Value) -> Any:
    axis = node.get("axis", 0) % max(x.ndim, 1)
    if is_host(places):
        return _gathered(x, places, axis)
    table = tensor(x, places.device)
    found = table.index_select(axis, _from_front(places, table.shape[axis]).reshape(-1))
    return found.reshape([*table.shape[:axis], *places.shape, *table.shape[axis + 1 :]])


def _gathered(x: Value, places: Host, axis: int) -> Value:
    if is_host(x):
        require_small([places.size, *x.shape[:axis], *x.shape[axis + 1 :]])
        return host(np.take(x, places.astype(np.int64), axis))
    if places.ndim == 0:
        return x.select(axis, integer(places))
    listed = plain(integers(places))
    if places.ndim == 1 and listed and listed[0] >= 0 and listed == list(range(listed[0], listed[0] + len(listed))):
        return x.narrow(axis, listed[0], len(listed))
    size = x.shape[axis]
    front = torch.tensor([place + size if place < 0 else place for place in listed], dtype=torch.int64, device=x.device)
    found = x.index_select(axis, front)
    return found if places.ndim == 1 else torch.unflatten(found, axis, list(places.shape))


def _from_front(places: Tensor, size: Any) -> Tensor:
    return torch.where(places < 0, places + size, places)


@reads("GatherElements")
def _gather_elements(node: Node, x: Tensor, places: Value) -> Any:
    axis = node.get("axis", 0)
    return x.gather(axis, _from_front(tensor(places, x.device), x.shape[axis]))


@reads("GatherND", on_host=True)
def _gather_nd(node: Node, x: Value, places: Value) -> Any:
    shared = node.get("batch_dims", 0)
    if not 0 <= shared < min(x.ndim, places.ndim):
        raise UnreadError(f"has batch_dims {shared}")
    if is_host(x) and is_host(places):
        require_small([*places.shape[:-1], *x.shape[shared + places.shape[-1] :]])
        own = np.meshgrid(*map(np.arange, plain(places.shape[:shared])), indexing="ij") if shared else []
        behind = (..., *(None,) * (places.ndim - 1 - shared))
        return x[(*(part[behind] for part in own), *np.moveaxis(places.astype(np.int64), -1, 0))]
    device = next(value.device for value in (x, places) if isinstance(value, Tensor))
    table, chosen = tensor(x, device), tensor(places, device)
    rows = [
        torch.arange(table.shape[axis], device=device).reshape(
            [-1 if at == axis else 1 for at in range(places.ndim - 1)]
        )
        for axis in range(shared)
    ]
    parts = zip(chosen.unbind(-1), table.shape[shared:], strict=False)
    return table[(*rows, *(_from_front(part, size) for part, size in parts))]


@reads("ScatterND")
def _scatter_nd(node: Node, x: Tensor, places: Value, updates: Value) -> Any:
    if node.get("reduction", "none") not in ("none", "add"):
        raise UnreadError(f"has reduction {node.get('reduction')!r}")
    chosen = tensor(places, x.device)
    where = tuple(_from_front(part, size) for part, size in zip(chosen.unbind(-1), x.shape, strict=False))
    adds = node.get("reduction", "none") == "add"
    return x.index_put(where, tensor(updates, x.device).to(x.dtype), accumulate=adds)


@reads("ScatterElements")
def _scatter_elements(node: Node, x: Tensor, places: Value, updates: Value) -> Any:
    axis, reduction = node.get("axis", 0), node.get("reduction", "none")
    chosen = _from_front(tensor(places, x.device), x.shape[axis])
    values = tensor(updates, x.device).to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, chosen, values)
    if reduction == "add":
        return x.scatter_add(axis, chosen, values)
    raise UnreadError(f"has reduction {reduction!r}")


@reads("Trilu")
def _triangle(node: Node, x: Tensor, diagonal: Value | None = None) -> Any:
    offset = 0 if diagonal is None else plain([integer(diagonal)])[0]
    return x.triu(offset) if node.get("upper", 1) else x.tril(offset)


@reads("OneHot", on_host=True)
def _one_hot(node: Node, places: Value, depth: Value, values: Value) -> Any:
    size = plain([integer(depth)])[0]
    if not 0 < size < 1 << 20:
        raise UnreadError(f"makes {size} classes")
    if is_host(places):
        require_small([places.size, size])
    device = next((value.device for value in (places, values) if isinstance(value, Tensor)), torch.device("cpu"))
    chosen = _from_front(tensor(places, device).long(), size).unsqueeze(-1)
    (hit,) = matched([(chosen == torch.arange(size, device=device))])
    off, on = tensor(values, device).unbind()
    found = torch.where(hit, on, off)
    axis = node.get("axis", -1)
    return found.movedim(-1, axis)
