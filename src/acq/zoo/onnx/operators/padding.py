"""Pads: those of windows, such as a convolution's, and the operator of that name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import UnreadError, Value, number, plain

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def window(node: Node, name: str, axes: int) -> list[int]:
    """A size per axis of a window: ``strides`` or ``dilations``, by default one."""
    found = list(node.get(name) or [1] * axes)
    if len(found) != axes or min(found) < 1:
        raise UnreadError(f"has {name} {found} for {axes} axes")
    return found


def pads_of(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """The pads before and behind each axis of an image.

    Args:
        node: An operator with windows.
        sizes: Of the image, per axis.
        kernel: Of the window, per axis.
    """
    axes, mode = len(kernel), node.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * axes, [0] * axes
    if mode == "NOTSET":
        pads = list(node.get("pads") or [0] * 2 * axes)
        if len(pads) != 2 * axes or min(pads) < 0:
            raise UnreadError(f"has pads {pads} for {axes} axes")
        return pads[:axes], pads[axes:]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnreadError(f"has auto_pad {mode!r}")
    strides, dilations = window(node, "strides", axes), window(node, "dilations", axes)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    total = [
        max((math.ceil(size / stride) - 1) * stride + span - size, 0)
        for size, stride, span in zip(plain(sizes), strides, spans, strict=True)
    ]
    less = [size // 2 for size in total]
    more = [size - half for size, half in zip(total, less, strict=True)]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def padded(x: Tensor, before: Sequence[int], behind: Sequence[int], value: float = 0.0) -> Tensor:
    """An image with a border of one value along its last axes."""
    flat = [size for pair in zip(reversed(before), reversed(behind), strict=True) for size in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@reads("Pad")
def _pad(
    node: Node, x: Tensor, pads: Value | None = None, value: Value | None = None, axes: Value | None = None
) -> Any:
    given = plain(node.given("pads", pads) or [])
    places = node.given("axes", axes)
    chosen = [axis % x.dim() for axis in plain(places)] if places is not None else list(range(x.dim()))
    if len(given) != 2 * len(chosen):
        raise UnreadError(f"has {len(given)} pads for {len(chosen)} axes")
    around = [[0, 0] for _ in range(x.dim())]
    for place, axis in enumerate(chosen):
        around[axis] = [given[place], given[place + len(chosen)]]
    mode = node.get("mode", "constant")
    fill = float(node.get("value", 0.0)) if value is None else number(value)
    first = next((axis for axis, pair in enumerate(around) if any(pair)), None)
    if first is None:
        return x
    flat = [size for pair in reversed(around[first:]) for size in pair]
    if mode == "constant":
        return F.pad(x, flat, value=fill)
    if mode not in _MODES:
        raise UnreadError(f"has mode {mode!r}")
    if first < x.dim() - 3 or first < 1 or min(flat) < 0:
        raise UnreadError(f"pads by {mode} along more axes than the last ones")
    return F.pad(x, _for_rank(flat, x.dim()), _MODES[mode])


def _for_rank(flat: list[int], rank: int) -> list[int]:
    """Pads of all axes but the first two, as torch's modes want them."""
    wanted = 2 * (rank - 2)
    if len(flat) > wanted:
        raise UnreadError("pads along the axis of channels")
    return flat + [0] * (wanted - len(flat))
