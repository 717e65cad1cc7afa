"""ONNX files as models with all their constants inside, screened before any of it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from acq.errors import RequestError, first_line, short
from acq.files.limits import format_bytes, read_bytes
from acq.files.screening import ONNX_BYTES, has_more_than_nodes, tensors_in

_INSTEAD = "give a smaller file"
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64, TensorProto.BOOL: 8,
}  # fmt: skip


def read_model(file: Path) -> onnx.ModelProto:
    """Read an ONNX file. Constants in other files are read too, from the same folder only.

    Raises:
        RequestError: There is no such file, it is no ONNX file, or it needs what cannot be read safely.
    """
    if not file.is_file():
        raise RequestError(f"there is no file {file}; give an ONNX file or the name of a network")
    content = read_bytes(file, ONNX_BYTES, _INSTEAD)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises errors of native code
        raise RequestError(f"{file} is no ONNX file ({first_line(error)}); export the network again") from error
    if not model.graph.node or not model.graph.output:
        raise RequestError(f"{file} has no graph with nodes and outputs; export the network again")
    if has_more_than_nodes(model):
        raise RequestError(f"{file} has functions, training information or sparse constants; export it without them")
    if any(isinstance(text, bytes) for text in _texts(model)):  # protobuf gives bytes where the text is not UTF-8
        raise RequestError(f"{file} has names that are not UTF-8; export the network again")
    _take_in(model, file)
    return model


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Names of operators, values and attributes."""
    for node in model.graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (part.name for part in node.attribute)
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        yield value.name
    yield from (entry.domain for entry in model.opset_import)


def _take_in(model: onnx.ModelProto, file: Path) -> None:
    """Read the constants that are in other files, and bound what all of them declare."""
    left = ONNX_BYTES
    for tensor in tensors_in(model.graph):
        size = _declared(tensor)
        left -= size
        if left < 0:
            raise RequestError(f"{file} has constants of more than {format_bytes(ONNX_BYTES)}; {_INSTEAD}")
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _external(tensor, size, file)
            tensor.data_location = TensorProto.DEFAULT
            tensor.ClearField("external_data")


def _declared(tensor: TensorProto) -> int:
    """The bytes that a constant's shape and type declare; 0 for types that are refused where they are used."""
    name = short(tensor.name)
    if min(tensor.dims, default=0) < 0:
        raise RequestError(f"the constant {name} has a negative size; export the network again")
    count: int = math.prod(tensor.dims)
    return (count * _BITS.get(tensor.data_type, 0) + 7) // 8


def _external(tensor: TensorProto, size: int, file: Path) -> bytes:
    """The bytes of a constant in another file."""
    name, known = short(tensor.name), {entry.key: entry.value for entry in tensor.external_data}
    where = known.get("location", "")
    if not where or Path(where).name != where or "\\" in where or where in (".", ".."):
        raise RequestError(f"the constant {name} is in {where!r}, and only files in the folder of {file} are read")
    path = file.parent / where
    try:
        start, length = int(known.get("offset") or 0), int(known.get("length") or size)
    except ValueError:
        start, length = -1, -1
    if tensor.data_type not in _BITS or start < 0 or length != size:
        raise RequestError(f"the constant {name} does not say which bytes of {where} it has; export the network again")
    if path.is_symlink() or not path.is_file():
        raise RequestError(f"{file} keeps its weights in {where}, which is not beside it; put it into the same folder")
    with path.open("rb") as stream:
        stream.seek(start)
        found: bytes = stream.read(size)
    if len(found) != size:
        raise RequestError(f"{path} is too short for the weights of {file}; copy or export both files again")
    return found
