"""Images of another size, exactly as the file's interpolation says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import HOST, Node, reads
from acq.zoo.onnx.values import UnreadError, Value, integers, is_host, plain

_FIRST_MODES = 11  # the version from which a file says how places are computed
_CLOSE = 1e-6
_LONGEST = 1 << 16  # pixels per side
_ROUNDINGS: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        old: Its size.
        new: Its size afterwards.
        scale: The second by the first, as the file says it.
    """

    old: int
    new: int
    scale: float

    def places(self, transformation: str) -> list[float]:
        """The place in the old axis that each new value has.

        Raises:
            UnreadError: The transformation is not known.
        """
        middle = [(place + 0.5) / self.scale - 0.5 for place in range(self.new)]
        if transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and self.new > 1):
            return middle
        if transformation == "pytorch_half_pixel":
            return [0.0]
        if transformation == "half_pixel_symmetric":
            shift = self.old / 2 * (1 - self.new / (self.scale * self.old))
            return [shift + place for place in middle]
        if transformation == "asymmetric":
            return [place / self.scale for place in range(self.new)]
        if transformation == "align_corners":
            step = (self.old - 1) / (self.new - 1) if self.new > 1 else 0.0
            return [place * step for place in range(self.new)]
        if transformation == "tf_half_pixel_for_nn":
            return [(place + 0.5) / self.scale for place in range(self.new)]
        raise UnreadError(f"has coordinates {transformation!r}")


@reads("Upsample", parameters=("", HOST))
def _upsample(node: Node, x: Tensor, scales: Value | None = None) -> Any:
    return _resized(node, x, _axes(node, x, scales, None))


@reads("Resize", parameters=("", HOST, HOST, HOST))
def _resize(
    node: Node, x: Tensor, region: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Any:
    if node.opset < _FIRST_MODES:
        region, scales = None, region
    return _resized(node, x, _axes(node, x, scales, sizes))


def _axes(node: Node, x: Tensor, scales: Value | None, sizes: Value | None) -> list[Axis]:
    """How each axis behind the channels is resized."""
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnreadError(f"has keep_aspect_ratio_policy {node.get('keep_aspect_ratio_policy')!r}")
    chosen = [axis % x.dim() for axis in node.get("axes") or range(x.dim())]
    factors = node.get("scales") or (_floats(scales) if scales is not None and 0 not in scales.shape else None)
    wanted = None if sizes is None or 0 in sizes.shape else integers(sizes)
    given = wanted if wanted is not None else factors
    if given is None:
        raise UnreadError("has neither sizes nor scales")
    if len(given) != len(chosen):
        raise UnreadError(f"has {len(given)} sizes for {len(chosen)} axes")
    found: dict[int, Axis] = {}
    for place, axis in enumerate(chosen):
        old = x.shape[axis]
        if axis < 2:
            # the number of images in sizes is that of the file, which may be made for one
            same = given[place] == 1 if wanted is None else axis == 0 or given[place] == old
            if not same:
                raise UnreadError("resizes the axis of images or of channels")
            continue
        (size,) = plain([old])
        if wanted is not None:
            found[axis] = Axis(size, plain([given[place]])[0], given[place] / size)
        else:
            found[axis] = Axis(size, math.floor(size * given[place] + _CLOSE), given[place])
    axes = [found.get(axis, Axis(x.shape[axis], x.shape[axis], 1.0)) for axis in range(2, x.dim())]
    if any(axis.new < 1 or axis.scale <= 0 for axis in axes):
        raise UnreadError("makes an image without pixels")
    if max(axis.new for axis in axes) > _LONGEST:
        raise UnreadError(f"makes an image of more than {_LONGEST:,} pixels per side")
    return axes


def _floats(value: Value) -> list[float]:
    if not is_host(value):
        raise UnreadError("takes scales that depend on the values of the images")
    return [float(entry) for entry in value.reshape(-1)]


def _resized(node: Node, x: Tensor, axes: list[Axis]) -> Any:
    mode, transformation = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if node.kind == "Upsample" or node.opset < _FIRST_MODES:
        transformation, rounding = "asymmetric", "floor"
    shrinks = mode != "linear" or any(axis.new < axis.old for axis in axes)
    if (node.get("antialias", 0) and shrinks) or node.get("exclude_outside", 0):  # where no axis shrinks, there is none
        raise UnreadError("has antialias or exclude_outside")
    if mode == "nearest":
        return _nearest(x, axes, transformation, rounding)
    if mode in ("linear", "bilinear"):
        return _linear(x, axes, transformation)
    if mode == "cubic" and len(axes) == 2 and node.get("cubic_coeff_a", -0.75) == -0.75:
        return _cubic(x, axes, transformation)
    raise UnreadError(f"has mode {mode!r}")


def _nearest(x: Tensor, axes: list[Axis], transformation: str, rounding: str) -> Any:
    if rounding not in _ROUNDINGS:
        raise UnreadError(f"has nearest_mode {rounding!r}")
    places = [
        [min(max(_ROUNDINGS[rounding](_snapped(place)), 0), axis.old - 1) for place in axis.places(transformation)]
        for axis in axes
    ]
    size = [axis.new for axis in axes]
    if len(axes) in (1, 2):
        for mode, add in (("nearest", 0.0), ("nearest-exact", 0.5)):
            if places == [[_floor((place + add) * axis.old / axis.new) for place in range(axis.new)] for axis in axes]:
                return F.interpolate(x, size, mode=mode)
    for axis, chosen in enumerate(places, 2):
        if chosen != list(range(x.shape[axis])):
            x = x.index_select(axis, torch.tensor(chosen, device=x.device))
    return x


def _floor(place: float) -> int:
    return math.floor(_snapped(place))


def _snapped(place: float) -> float:
    """A place without the rounding of its computation where it is half an integer."""
    return round(2 * place) / 2 if abs(2 * place - round(2 * place)) < _CLOSE else place


def _linear(x: Tensor, axes: list[Axis], transformation: str) -> Any:
    size = [axis.new for axis in axes]
    kind = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(len(axes))
    if kind is not None:
        plain_scale = all(math.isclose(axis.scale, axis.new / axis.old, rel_tol=_CLOSE) for axis in axes)
        if transformation == "align_corners" and min(size) > 1:
            return F.interpolate(x, size, mode=kind, align_corners=True)
        if plain_scale and _same_places(axes, transformation, "half_pixel"):
            return F.interpolate(x, size, mode=kind, align_corners=False)
    for place, axis in enumerate(axes, 2):
        if axis.old != axis.new:
            x = _blended(x, place, axis, axis.places(transformation))
    return x


def _same_places(axes: Sequence[Axis], one: str, other: str) -> bool:
    return all(
        abs(min(max(a, 0), axis.old - 1) - min(max(b, 0), axis.old - 1)) < _CLOSE
        for axis in axes
        for a, b in zip(axis.places(one), axis.places(other), strict=True)
    )


def _blended(x: Tensor, along: int, axis: Axis, places: list[float]) -> Tensor:
    """Values between two neighbours of an axis."""
    inside = [min(max(place, 0.0), axis.old - 1.0) for place in places]
    lower = [min(math.floor(place), axis.old - 1) for place in inside]
    upper = [min(low + 1, axis.old - 1) for low in lower]
    share = torch.tensor([place - low for place, low in zip(inside, lower, strict=True)], device=x.device)
    share = share.reshape([-1] + [1] * (x.dim() - along - 1))
    first, second = (x.index_select(along, torch.tensor(chosen, device=x.device)) for chosen in (lower, upper))
    return first * (1 - share) + second * share


def _cubic(x: Tensor, axes: list[Axis], transformation: str) -> Any:
    size = [axis.new for axis in axes]
    if transformation == "align_corners" and min(size) > 1:
        return F.interpolate(x, size, mode="bicubic", align_corners=True)
    exact = all(math.isclose(axis.scale, axis.new / axis.old, rel_tol=_CLOSE) for axis in axes)
    if exact and transformation in ("half_pixel", "pytorch_half_pixel") and min(size) > 1:
        return F.interpolate(x, size, mode="bicubic", align_corners=False)
    raise UnreadError(f"has mode 'cubic' with coordinates {transformation!r}")
