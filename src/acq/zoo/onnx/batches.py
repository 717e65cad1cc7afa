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


@dataclass(frozen=True)
class Freed:
    """What changes in a node's inputs when there are other numbers of images.

    Attributes:
        size: The place of the size that counts images, in a shape that is the second input.
        repeated: Places of inputs that are repeated along ``axis``, once per image.
        axis: The axis of the images.
    """

    size: int | None = None
    repeated: tuple[int, ...] = ()
    axis: int = 0

    def applied(self, node: Node, values: Sequence[Value | None], count: Any, fixed: int) -> list[Value | None]:
        """A node's inputs for ``count`` images, where its file has ``fixed``."""
        found = list(values)
        if self.size is not None:
            shape = node.given("shape", found[1]) or []
            free = shape[self.size] // fixed * count if -1 in shape else -1
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


def freed(node: Node, values: Sequence[Value | None], fixed: int) -> Freed | None:
    """What must change in a node of a file for ``fixed`` images, from its inputs in a pass with ``TRIAL`` images."""
    if node.kind == "Reshape" and isinstance(values[0], Tensor):
        axis = axis_of_images(values[0])
        shape = node.given("shape", values[1])
        size = None if axis is None or shape is None else _counted(list(values[0].shape), axis, shape, fixed)
        return None if size is None else Freed(size)
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
    place = axis + len(sizes) - x.dim()
    return Freed(place) if 0 <= place < len(sizes) and sizes[place] == fixed else None


def _counted(old: list[int], axis: int, shape: list[Any], fixed: int) -> int | None:
    """The place of the size that counts images in a new shape; None where it needs no change."""
    sizes = [old[at] if size == 0 and at < len(old) else size for at, size in enumerate(shape)]
    if any(size % TRIAL == 0 and size > 0 for size in sizes):
        return None
    old = [size // TRIAL * fixed if at == axis else size for at, size in enumerate(old)]
    rest = math.prod(size for size in sizes if size != -1)
    sizes = [math.prod(old) // max(rest, 1) if size == -1 else size for size in sizes]
    before = math.prod(old[:axis])
    for place, size in enumerate(sizes):
        if math.prod(sizes[:place]) == before and size % fixed == 0:
            return place if shape[place] != -1 else None
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
