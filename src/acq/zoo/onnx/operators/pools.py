"""Pools over windows and over whole images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.operators.padding import padded, pads_of, window
from acq.zoo.onnx.registry import Node, only, reads
from acq.zoo.onnx.values import UnreadError, plain

_MAXIMA: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@reads("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Any:
    only(node)
    kernel, strides, dilations, before, behind, ceil = _windows(node, x)
    if _fits(kernel, before, behind, x, strides, dilations, ceil):
        return _MAXIMA[len(kernel)](x, kernel, strides, before, dilations, ceil or before != behind)
    behind = _reached(x, kernel, strides, dilations, before, behind) if ceil else behind
    return _MAXIMA[len(kernel)](padded(x, before, behind, -math.inf), kernel, strides, 0, dilations)


@reads("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Any:
    kernel, strides, dilations, before, behind, ceil = _windows(node, x)
    counted = bool(node.get("count_include_pad", 0))
    if max(dilations) > 1:
        raise UnreadError("has dilations")
    pool = _MEANS[len(kernel)]
    if _fits(kernel, before, behind, x, strides, dilations, ceil) and (not counted or before == behind):
        return pool(x, kernel, strides, before, ceil or before != behind, counted)
    reached = _reached(x, kernel, strides, dilations, before, behind) if ceil else behind
    more = [most - least for most, least in zip(reached, behind, strict=True)]
    ones = torch.ones_like(x[:1, :1])
    ones = padded(padded(ones, before, behind, 1.0 if counted else 0.0), [0] * len(more), more)
    share = pool(ones, kernel, strides)  # of each window that counts
    return pool(padded(x, before, reached), kernel, strides) / share


def _windows(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int], bool]:
    """Kernel, strides, dilations, pads before and behind each axis, and whether sizes are rounded up."""
    kernel = list(node.get("kernel_shape") or [])
    axes = len(kernel)
    if axes not in _MAXIMA or x.dim() != axes + 2 or min(kernel) < 1:
        raise UnreadError(f"has a window {kernel} for {x.dim()} axes")
    before, behind = pads_of(node, x.shape[2:], kernel)
    ceil = bool(node.get("ceil_mode", 0))
    return kernel, window(node, "strides", axes), window(node, "dilations", axes), before, behind, ceil


def _fits(
    kernel: list[int], before: list[int], behind: list[int], x: Tensor, strides: list[int], dilations: list[int],
    ceil: bool,
) -> bool:  # fmt: skip
    """Whether torch's pool has the same windows: its pads are equal on both sides, or it rounds sizes up."""
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        return False
    if before == behind:
        return True
    sizes = plain(x.shape[2:])
    parts = list(zip(sizes, spans, strides, before, behind, strict=True))
    return not ceil and all(
        (size + low + high - span) // stride + 1 == _rounded_up(size, span, stride, low)
        for size, span, stride, low, high in parts
    )


def _rounded_up(size: int, span: int, stride: int, pad: int) -> int:
    """The windows of torch's pool where it rounds sizes up; each begins within the image or its first pad."""
    count = -(-(size + 2 * pad - span) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pad else count


def _reached(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], before: list[int], behind: list[int]
) -> list[int]:
    """Pads behind each axis with which the last window of a size that is rounded up is whole."""
    found = []
    for size, k, stride, dilation, low, high in zip(
        plain(x.shape[2:]), kernel, strides, dilations, before, behind, strict=True
    ):
        span = (k - 1) * dilation + 1
        count = -(-(size + low + high - span) // stride) + 1
        count -= (count - 1) * stride >= size + low
        found.append(max(high, (count - 1) * stride + span - size - low))
    return found


@reads("GlobalAveragePool")
def _global_average_pool(_: Node, x: Tensor) -> Any:
    return F.adaptive_avg_pool2d(x, 1) if x.dim() == 4 else x.mean(list(range(2, x.dim())), True)


@reads("GlobalMaxPool")
def _global_max_pool(_: Node, x: Tensor) -> Any:
    return F.adaptive_max_pool2d(x, 1) if x.dim() == 4 else x.amax(list(range(2, x.dim())), True)
