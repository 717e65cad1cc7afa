"""Operators that move, join, cut and repeat values, and those that read sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import UnreadError, Value, host, integers, is_host, number, plain, require_small, tensor


@reads("Identity", on_host=True)
def _identity(_: Node, x: Value) -> Any:
    return x


@reads("Shape", on_host=True)
def _shape(node: Node, x: Value) -> Any:
    return host(list(x.shape)[node.get("start", 0) : node.get("end")])


@reads("Size", on_host=True)
def _size(_: Node, x: Value) -> Any:
    return host(math.prod(x.shape))


@reads("Reshape", on_host=True)
def _reshape(node: Node, x: Value, shape: Value | None = None) -> Any:
    wanted = node.given("shape", shape) or []
    keeps = not node.get("allowzero", 0)
    if keeps and any(isinstance(size, int) and size == 0 for size in wanted[x.ndim :]):
        raise UnreadError("keeps an axis that there is not")
    sizes = [
        x.shape[axis] if keeps and isinstance(size, int) and size == 0 else size for axis, size in enumerate(wanted)
    ]
    if is_host(x):
        return x.reshape(plain(sizes))
    return x.reshape(sizes)


@reads("Flatten")
def _flatten(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.flatten(0, axis - 1).unsqueeze(1) if axis == x.dim() else x.flatten(axis).flatten(0, axis - 1)


@reads("Transpose", on_host=True)
def _transpose(node: Node, x: Value) -> Any:
    order = list(node.get("perm") or reversed(range(x.ndim)))
    if sorted(order) != list(range(x.ndim)):
        raise UnreadError(f"has the order {order} for {x.ndim} axes")
    return x.transpose(order) if is_host(x) else x.permute(order)


@reads("Squeeze", on_host=True)
def _squeeze(node: Node, x: Value, axes: Value | None = None) -> Any:
    given = node.given("axes", axes)
    if given is None:
        chosen = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    else:
        chosen = [axis % max(x.ndim, 1) for axis in plain(given)]
    return x.squeeze(tuple(chosen)) if chosen else x


@reads("Unsqueeze", on_host=True)
def _unsqueeze(node: Node, x: Value, axes: Value | None = None) -> Any:
    given = plain(node.given("axes", axes) or [])
    rank = x.ndim + len(given)
    chosen = sorted(axis % rank for axis in given)
    if is_host(x):
        return np.expand_dims(x, tuple(chosen))
    for axis in chosen:
        x = x.unsqueeze(axis)
    return x


@reads("Expand", on_host=True)
def _expand(_: Node, x: Value, shape: Value) -> Any:
    wanted = integers(shape)
    if is_host(x) and all(isinstance(size, int) for size in wanted):
        found = np.broadcast_shapes(x.shape, tuple(wanted))
        require_small(found)
        return np.broadcast_to(x, found)
    x = tensor(x, torch.device("cpu")) if is_host(x) else x
    wanted = [1] * (x.dim() - len(wanted)) + wanted
    more = len(wanted) - x.dim()
    return x.expand(
        [
            x.shape[axis - more] if axis >= more and isinstance(size, int) and size == 1 else size
            for axis, size in enumerate(wanted)
        ]
    )


@reads("Tile", on_host=True)
def _tile(_: Node, x: Value, repeats: Value) -> Any:
    counts = integers(repeats)
    if not is_host(x):
        return x.repeat(counts)
    require_small([*x.shape, *counts])
    return np.tile(x, plain(counts))


@reads("ConstantOfShape", on_host=True)
def _constant_of_shape(node: Node, shape: Value) -> Any:
    sizes = integers(shape)
    require_small(sizes)
    value = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(-1)[:1]
    if all(isinstance(size, int) for size in sizes) and (value.dtype.kind in "iub" or math.prod(sizes) == 1):
        return np.full(sizes, value[0])
    kind = torch.float32 if value.dtype.kind == "f" else torch.int64
    return torch.full(sizes, value[0].item(), dtype=torch.bool if value.dtype.kind == "b" else kind)


@reads("Range", on_host=True)
def _range(_: Node, start: Value, limit: Value, step: Value) -> Any:
    if all(is_host(value) and value.dtype.kind in "iu" for value in (start, limit, step)):
        bounds = [integers(value)[0] for value in (start, limit, step)]
        if bounds[2] == 0:
            raise UnreadError("has steps of zero")
        require_small([len(range(*bounds))])
        return np.arange(*bounds, dtype=np.int64)
    numbers = [number(value) for value in (start, limit, step)]
    if not all(map(math.isfinite, numbers)) or numbers[2] == 0:
        raise UnreadError("has steps of zero, or bounds that are not finite")
    require_small([max(0, math.ceil((numbers[1] - numbers[0]) / numbers[2]))])
    return torch.arange(*numbers, dtype=torch.float32)


@reads("Concat", on_host=True)
def _concat(node: Node, *values: Value) -> Any:
    axis = node.get("axis", 1)
    if all(map(is_host, values)):
        return host(np.concatenate([np.atleast_1d(value) for value in values], axis))
    device = next(value.device for value in values if isinstance(value, Tensor))
    return torch.cat([tensor(value, device) for value in values], axis)


@reads("Split", on_host=True)
def _split(node: Node, x: Value, sizes: Value | None = None) -> Any:
    given, axis, count = node.given("split", sizes), node.get("axis", 0), len(node.outputs)
    if given is None:
        size = plain([x.shape[axis]])[0]
        step = -(-size // count)
        given = [step] * (size // step) + ([size % step] if size % step else [])
    parts = plain(given)
    if len(parts) != count:
        raise UnreadError(f"returns {count} parts of {len(parts)}")
    if is_host(x):
        return tuple(np.split(x, np.cumsum(parts)[:-1], axis))
    return tuple(torch.split(x, parts, axis))


@reads("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Any:
    step = _block(node, x)
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, step)
    channels, height, width = x.shape[1:]
    y = x.reshape(-1, step, step, channels // step**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(-1, channels // step**2, height * step, width * step)  # [N, C, H, step, W, step]


@reads("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Any:
    step = _block(node, x)
    channels, height, width = x.shape[1:]
    y = x.reshape(-1, channels, height // step, step, width // step, step).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(-1, channels * step**2, height // step, width // step)  # [N, step, step, C, H, W]


def _block(node: Node, x: Tensor) -> int:
    step = node.get("blocksize")
    if x.dim() != 4 or not isinstance(step, int) or step < 1:
        raise UnreadError(f"has blocks of {step} for {x.dim()} axes")
    return step
