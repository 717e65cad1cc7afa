"""An ONNX file is looked through before an engine opens it: engines are native code and trust what they are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto

from acq.errors import RequestError, first_line
from acq.files.limits import GIB, VALUES_AT_ONCE, images_at_once, in_bytes, read_bytes

ONNX_BYTES = 2 * GIB  # protobuf's own limit
_INSTEAD = "give a file of acq export"
_PLAIN = {AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.STRING}
_BITS = {
    TensorProto.FLOAT: 32, TensorProto.INT64: 64, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.INT4: 4,
}  # fmt: skip


@dataclass(frozen=True)
class Screened:
    """The content of a file that may be opened, and what it says of itself."""

    content: bytes
    facts: dict[str, str]


def screened(file: Path) -> Screened:
    """The content of an ONNX file that is valid and asks for nothing that `acq export` does not write.

    That is: no data outside the file, no graphs within nodes, functions or other operators than the standard's,
    constants as large as they say, and, for as many images as are run together, values of known shapes that fit into
    memory.

    Raises:
        RequestError: there is no such file, or something in it is otherwise.
    """
    if not file.is_file():
        raise RequestError(f"there is no file {file}; acq export RUN writes one")
    content = read_bytes(file, ONNX_BYTES, _INSTEAD)
    try:
        model = onnx.load_model_from_string(content)
        _refuse(file, _foreign(model))
        _refuse(file, _misfits(model))
        onnx.checker.check_model(content, full_check=True)
        _refuse(file, _too_large(model))
    except RequestError:
        raise
    except Exception as error:  # protobuf's, the checker's, and what other native code raises
        raise RequestError(f"{file} is no valid ONNX file ({first_line(error)}); {_INSTEAD}") from error
    return Screened(content, {entry.key: entry.value for entry in model.metadata_props})


def _refuse(file: Path, faults: Iterator[str]) -> None:
    for fault in faults:
        raise RequestError(f"{file} {fault}, which acq export writes in no file; {_INSTEAD}")


def _foreign(model: onnx.ModelProto) -> Iterator[str]:
    """What engines would have to go elsewhere for, or run in ways that no shape tells of."""
    if model.functions or model.training_info:
        yield "has functions or training of its own"
    if any(entry.domain not in ("", "ai.onnx") for entry in [*model.opset_import, *model.graph.node]):
        yield "has operators that are not the standard's"
    if any(part.type not in _PLAIN for node in model.graph.node for part in node.attribute):
        yield "has graphs or tensors within its nodes"
    if model.graph.sparse_initializer:
        yield "has sparse constants"
    if any(_is_elsewhere(tensor) for tensor in model.graph.initializer):
        yield "keeps constants in other files"
    if any(isinstance(text, bytes) for text in _texts(model)):  # which protobuf gives where it is no UTF-8
        yield "has text that is none"
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        yield "has several inputs or outputs, or none"


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """What engines show or hand on, and metadata."""
    yield from (model.producer_name, model.producer_version, model.domain, model.doc_string)
    yield from (model.graph.name, model.graph.doc_string)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for value in (*model.graph.input, *model.graph.output):
        yield value.name


def _is_elsewhere(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def _misfits(model: onnx.ModelProto) -> Iterator[str]:
    """Constants that are not as large as they say."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in _BITS:
            yield f"has a constant of type {tensor.data_type}"
            return
        claimed = (math.prod(tensor.dims) * _BITS[tensor.data_type] + 7) // 8
        if min(tensor.dims, default=0) < 0 or claimed != len(tensor.raw_data):
            yield f"has a constant that claims {in_bytes(max(claimed, 0))} and has {in_bytes(len(tensor.raw_data))}"


def _too_large(model: onnx.ModelProto) -> Iterator[str]:
    """Values whose shapes the file does not fix, or that are larger than any network's."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    image = fixed.graph.input[0].type.tensor_type.shape.dim
    if not image or any(side.dim_value < 1 for side in image[1:]):
        yield "takes images of no known size"
        return
    image[0].dim_value = images_at_once([side.dim_value for side in image[1:]])
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = image[0].dim_value
    inferred = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in [*inferred.value_info, *inferred.output]}
    for name in (name for node in inferred.node for name in node.output if name):
        if not all(side.HasField("dim_value") for side in shapes.get(name, [onnx.TensorShapeProto.Dimension()])):
            yield f"has a value {name[:40]!r} of unknown size"
        elif math.prod(side.dim_value for side in shapes[name]) > VALUES_AT_ONCE:
            yield f"has a value {name[:40]!r} of more than {VALUES_AT_ONCE:,} numbers"
