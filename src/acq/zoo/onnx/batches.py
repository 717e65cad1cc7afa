"""Files that were made for one number of images, taken for any.

Such a file has the number in its shapes. One pass without values, with a number of images that no size has as a
factor, shows which axis of each value is that of the images. Then a shape that says the number says another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from acq.zoo.onnx.registry import Node
from acq.zoo.onnx.values import Value, host, integers

TRIAL = 104_729  # a prime number of images
_TABLE = 2  # axes


@dataclass(frozen=True)
class Freed:
    """What changes in a node's inputs when there are other numbers of images.

    Attributes:
        size: The place of the size that counts images, in a shape that is the second input.
        repeated: Places of inputs that are repeated along ``axis``, once per image.
        axis: The axis of the images.
        inside: Whether the images are counted inside other places of that axis, as rows of a table of sequences are.
    """

    size: int | None = None
    repeated: tuple[int, ...] = ()
    axis: int = 0
    inside: bool = False

    def applied(self, node: Node, values: Sequence[Value | None], count: Any, fixed: int) -> list[Value | None]:
        """A node's inputs for ``count`` images, where its file has ``fixed``."""
        found = list(values)
        if self.size is not None:
            shape = node.given("shape", found[1]) or []
            free = shape[self.size] // fixed * count if -1 in shape and shape[self.size] != -1 else -1
            free = 1 if node.kind == "Expand" else free  # which there means that the axis stays as it is
            found[1] = host([*shape[: self.size], free, *shape[self.size + 1 :]])
        for place in self.repeated:
            value = found[place]
            if isinstance(value, Tensor):
                one = value.narrow(self.axis, 0, 1)
                sizes = list(one.shape)
                sizes[self.axis] = count
                found[place] = one.expand(sizes)
        return found


def axis_of_images(value: Any) -> int | None:
    """The axis of a value that counts images, in a pass with ``TRIAL`` of them."""
    if not isinstance(value, Tensor):
        return None
    return next((axis for axis, size in enumerate(value.shape) if size and size % TRIAL == 0), None)


def freed(node: Node, values: Sequence[Value | None], fixed: int, inside: bool = False) -> Freed | None:
    """What must change in a node of a file for ``fixed`` images.

    Args:
        node: The node.
        values: Its inputs in a pass with ``TRIAL`` images.
        fixed: The number of images that the file is made for.
        inside: Whether the first input counts images inside other places of their axis.
    """
    if node.kind == "Reshape" and isinstance(values[0], Tensor):
        axis = axis_of_images(values[0])
        shape = node.given("shape", values[1])
        return None if axis is None or shape is None else _counted(list(values[0].shape), axis, shape, fixed, inside)
    if node.kind == "Expand":
        return _expanded(values, fixed)
    if node.kind == "Concat":
        return _repeated(node, values, fixed)
    return None


def _expanded(values: Sequence[Value | None], fixed: int) -> Freed | None:
    """The place in an Expand's shape that says the number of images; the axis then stays as it is."""
    x, shape = values[0], values[1]
    axis = axis_of_images(x)
    if axis is None or not isinstance(x, Tensor) or shape is None:
        return None
    sizes = integers(shape)
    place, own = axis + len(sizes) - x.dim(), x.shape[axis] // TRIAL * fixed  # windows of images are several each
    return Freed(place) if 0 <= place < len(sizes) and sizes[place] == own else None


def _counted(old: list[int], axis: int, shape: list[Any], fixed: int, inside: bool) -> Freed | None:
    """The size that counts images in a new shape; None where it needs no change.

    The images are one factor of the tensor, with ``left`` numbers outside and ``right`` inside. Of the new sizes, the
    one that is the number of images counts them. Otherwise one is a multiple of it, with the images outside or inside.
    """
    sizes = [old[at] if size == 0 and at < len(old) else size for at, size in enumerate(shape)]
    if any(size % TRIAL == 0 and size > 0 for size in sizes):
        return None
    several = old[axis] // TRIAL
    left, right = math.prod(old[:axis]), math.prod(old[axis + 1 :])
    left, right = (left * several, right) if inside else (left, right * several)
    rest = math.prod(size for size in sizes if size != -1)
    sizes = [left * fixed * right // max(rest, 1) if size == -1 else size for size in sizes]
    outside_of = [at for at, size in enumerate(sizes) if math.prod(sizes[:at]) == left and size % fixed == 0]
    inside_of = [at for at, size in enumerate(sizes) if math.prod(sizes[at + 1 :]) == right and size % fixed == 0]
    exact = [at for at in outside_of if at in inside_of]
    rows = left > 1 and len(sizes) == _TABLE  # of a linear layer
    for places, found_inside in (
        (exact, False),
        (inside_of if rows else [], True),
        (outside_of, False),
        (inside_of, True),
    ):
        if places:
            return None if shape[places[0]] == -1 and not found_inside else Freed(places[0], inside=found_inside)
    return None


def _repeated(node: Node, values: Sequence[Value | None], fixed: int) -> Freed | None:
    """Which partners of a Concat have one value for all images, or one of each of ``fixed`` images."""
    axes = {axis for axis in map(axis_of_images, values) if axis is not None}
    if len(axes) != 1:
        return None
    (axis,) = axes
    places = [
        place
        for place, value in enumerate(values)
        if isinstance(value, Tensor)
        and axis_of_images(value) is None
        and axis < value.dim()
        and value.shape[axis] == fixed
    ]
    rank = max(value.dim() for value in values if isinstance(value, Tensor))
    if not places or node.get("axis", 1) % rank == axis:
        return None
    return Freed(None, tuple(places), axis)
