"""What an ONNX file takes: one tensor of images, in a layout, a type and a number of images at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from acq.core.file_form import Kind, Layout
from acq.errors import RequestError, listed, short
from acq.zoo.onnx.layout import TO_FRONT

_TYPES: dict[int, Kind] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}
_CHANNELS = (1, 2, 3, 4)  # of images
_RANK = 4


@dataclass(frozen=True)
class Entrance:
    """The input of a file.

    Attributes:
        name: Of the input.
        layout: The order of its axes.
        kind: The type of its values.
        batch: The number of images that the file is made for; None where it is made for any.
        size: Channels, height and width; None where they are free.
    """

    name: str
    layout: Layout
    kind: Kind
    batch: int | None
    size: tuple[int | None, int | None, int | None]

    def input_size(self, given: Sequence[int] | None) -> tuple[int, ...]:
        """The size of the images: that of the file, and of ``given`` where the file leaves it open.

        Raises:
            RequestError: A size is missing, or differs from the file's.
        """
        if given is None:
            known = tuple(size for size in self.size if size is not None)
            if len(known) < len(self.size):
                shown = ",".join("?" if size is None else str(size) for size in self.size)
                raise RequestError(f"the file takes images of any size ({shown}); give --input-size, such as 3,224,224")
            return known
        fits = len(given) == len(self.size) and all(
            size in (None, wanted) for size, wanted in zip(self.size, given, strict=True)
        )
        if not fits:
            shown = ",".join("?" if size is None else str(size) for size in self.size)
            raise RequestError(f"--input-size is {','.join(map(str, given))}, but the file takes {shown}; leave it out")
        return tuple(given)


def entrance_of(model: onnx.ModelProto) -> Entrance:
    """Read what a model takes.

    Raises:
        RequestError: It takes no images, several inputs, or a type that is not read.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = listed([short(value.name) for value in inputs]) or "none"
        raise RequestError(f"the file takes {len(inputs)} inputs ({names}) and not images alone; export it with one")
    value, kind = inputs[0], inputs[0].type.tensor_type
    if kind.elem_type not in _TYPES:
        raise RequestError(f"the file's input {short(value.name)} is not of floats or bytes; export it with images")
    sides = [side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim]
    if len(sides) != _RANK:
        raise RequestError(
            f"the file's input {short(value.name)} has {len(sides)} axes and not those of images; export it with images"
        )
    batch, *size = sides
    layout = _layout(model, value.name, size)
    channels, height, width = size if layout == "NCHW" else (size[2], size[0], size[1])
    return Entrance(value.name, layout, _TYPES[kind.elem_type], batch, (channels, height, width))


def _layout(model: onnx.ModelProto, name: str, size: list[int | None]) -> Layout:
    """The order of an input's axes: by what the graph does with it first, then by the number of channels."""
    for node in model.graph.node:
        if name in node.input and node.op_type == "Transpose":
            orders = [list(part.ints) for part in node.attribute if part.name == "perm"]
            if orders == [TO_FRONT]:
                return "NHWC"
    return "NHWC" if size[2] in _CHANNELS and size[0] not in _CHANNELS else "NCHW"
