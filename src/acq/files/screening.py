"""Checks of an ONNX file before an engine opens it, because engines are native code and trust their input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto

from acq.errors import RequestError, first_line, short
from acq.files.limits import GIB, VALUES_AT_ONCE, format_bytes, images_at_once, read_bytes

ONNX_BYTES = 2 * GIB  # protobuf's own limit
DOMAINS = ("", "ai.onnx")  # of the standard
PRODUCER = "acq"  # in the files of acq export
_INSTEAD = "give a file from acq export"
_PLAIN = {AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.STRING}
_BITS = {
    TensorProto.FLOAT: 32, TensorProto.INT64: 64, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.INT4: 4,
    TensorProto.INT32: 32, TensorProto.BOOL: 8,
}  # fmt: skip
TAIL_BYTES = 64 << 20  # anchors and tables of a detector take some hundred kB
TAIL_FACT = "tail"  # key of the metadata of files with such a part
_DEEPEST = 16  # graphs in graphs


@dataclass(frozen=True)
class Screened:
    """An ONNX file that passed every check.

    Attributes:
        content: The bytes that were checked; give these to the engine, because the file may change.
        facts: The file's metadata.
    """

    content: bytes
    facts: dict[str, str]


def is_own(file: Path) -> bool:
    """Return whether an ONNX file says that ``acq export`` wrote it; False where it cannot be read.

    Raises:
        RequestError: It is larger than any ONNX file.
    """
    model = _parsed(file)
    return model is not None and bool(model.producer_name == PRODUCER)


def has_tail(file: Path) -> bool:
    """Return whether an ONNX file says that it goes on behind the network's outputs; False where it cannot be read.

    Raises:
        RequestError: It is larger than any ONNX file.
    """
    model = _parsed(file)
    return model is not None and any(entry.key == TAIL_FACT for entry in model.metadata_props)


def _parsed(file: Path) -> onnx.ModelProto | None:
    if not file.is_file():
        return None
    try:
        return onnx.load_model_from_string(read_bytes(file, ONNX_BYTES, _INSTEAD))
    except RequestError:
        raise
    except Exception:  # protobuf raises errors of native code
        return None


def screened_tail(content: bytes) -> bytes:
    """Check the part of a file that is put back behind a student, which engines open.

    It is a stranger's, so it may have any standard operator, also control flow; its constants are inside, as large as
    their shapes.

    Raises:
        RequestError: It has other files, functions, operators of no standard, or is no ONNX file.
    """
    cut = "name values further behind as --outputs"
    if len(content) > TAIL_BYTES:
        raise RequestError(f"the part of the file behind --outputs has {format_bytes(len(content))}; {cut}")
    try:
        model = onnx.load_model_from_string(content)
        fault = next(_unusable(model), None)
    except Exception as error:  # protobuf raises errors of native code
        raise RequestError(f"the part of the file behind --outputs is damaged ({first_line(error)})") from error
    if fault is not None:
        raise RequestError(f"the part of the file behind --outputs {fault}; {cut}")
    return content


def _unusable(model: onnx.ModelProto) -> Iterator[str]:
    graphs = list(graphs_in(model.graph))
    if has_more_than_nodes(model):
        yield "has functions, training information or sparse constants"
    nodes = [node for graph in graphs for node in graph.node]
    if any(node.domain not in DOMAINS for node in nodes):
        yield "has operators outside the ONNX standard"
    if any(map(is_external, tensors_in(model.graph))):
        yield "keeps constants in other files"


def graphs_in(graph: onnx.GraphProto, depth: int = 0) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs inside its nodes.

    Raises:
        RequestError: They are nested too deeply.
    """
    if depth > _DEEPEST:
        raise RequestError("the file has graphs nested too deeply; export the network again")
    yield graph
    for part in (part for node in graph.node for part in node.attribute):
        for inner in (part.g, *part.graphs) if part.type == AttributeProto.GRAPH else part.graphs:
            yield from graphs_in(inner, depth + 1)


def has_more_than_nodes(model: onnx.ModelProto) -> bool:
    """Whether a file has functions, training information or sparse constants, which nothing here reads.

    Raises:
        RequestError: Graphs are nested too deeply.
    """
    return bool(model.functions or model.training_info) or any(map(_has_sparse, graphs_in(model.graph)))


def _has_sparse(graph: onnx.GraphProto) -> bool:
    sparse = (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
    return bool(graph.sparse_initializer) or any(part.type in sparse for node in graph.node for part in node.attribute)


def tensors_in(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The constants of a graph and of the graphs inside its nodes, also those that are attributes; no sparse ones.

    Raises:
        RequestError: Graphs are nested too deeply.
    """
    for each in graphs_in(graph):
        yield from each.initializer
        for part in (part for node in each.node for part in node.attribute):
            yield from ([part.t] if part.type == AttributeProto.TENSOR else part.tensors)


def screened(file: Path) -> Screened:
    """Read an ONNX file and refuse everything that ``acq export`` does not write.

    The file must be valid. It has no data in other files, no graphs inside nodes, no functions and only standard
    operators. Constants are as large as their shapes. Every value has a known size that fits into memory for a batch
    of ``images_at_once``.

    Raises:
        RequestError: There is no such file, or a check fails.
    """
    if not file.is_file():
        raise RequestError(f"there is no file {file}; acq export RUN writes one")
    content = read_bytes(file, ONNX_BYTES, _INSTEAD)
    try:
        model = onnx.load_model_from_string(content)
        if any(entry.key == TAIL_FACT for entry in model.metadata_props):
            raise RequestError(f"{file} goes on behind the network's outputs; give the run folder instead")
        _refuse(file, _foreign_parts(model))
        _refuse(file, _bad_constants(model))
        onnx.checker.check_model(content, full_check=True)
        _refuse(file, _bad_sizes(model))
    except RequestError:
        raise
    except Exception as error:  # protobuf and the checker raise errors of native code
        raise RequestError(f"{file} is no valid ONNX file ({first_line(error)}); {_INSTEAD}") from error
    return Screened(content, {entry.key: entry.value for entry in model.metadata_props})


def _refuse(file: Path, faults: Iterator[str]) -> None:
    for fault in faults:
        raise RequestError(f"{file} {fault}, which acq export never writes; {_INSTEAD}")


def _foreign_parts(model: onnx.ModelProto) -> Iterator[str]:
    """Parts that load other files, or whose work no shape limits."""
    if model.functions or model.training_info:
        yield "has functions or training information"
    if any(entry.domain not in DOMAINS for entry in [*model.opset_import, *model.graph.node]):
        yield "has operators outside the ONNX standard"
    if any(part.type not in _PLAIN for node in model.graph.node for part in node.attribute):
        yield "has graphs or tensors inside its nodes"
    if model.graph.sparse_initializer:
        yield "has sparse constants"
    if any(is_external(tensor) for tensor in model.graph.initializer):
        yield "keeps constants in other files"
    if any(isinstance(text, bytes) for text in _texts(model)):  # protobuf gives bytes where the text is not UTF-8
        yield "has text that is not UTF-8"
    outputs = [value.name for value in model.graph.output]
    if len(model.graph.input) != 1 or not outputs or len(set(outputs)) < len(outputs):
        yield "has several inputs, or outputs of one name, or none"


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Texts that engines show or pass on, and metadata."""
    yield from (model.producer_name, model.producer_version, model.domain, model.doc_string)
    yield from (model.graph.name, model.graph.doc_string)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for value in (*model.graph.input, *model.graph.output):
        yield value.name


def is_external(tensor: TensorProto) -> bool:
    """Whether a constant says that its values are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def _bad_constants(model: onnx.ModelProto) -> Iterator[str]:
    """Constants of a type that is not written, or whose data does not fit their shape."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in _BITS:
            yield f"has a constant of type {tensor.data_type}"
            return
        declared, stored = (math.prod(tensor.dims) * _BITS[tensor.data_type] + 7) // 8, len(tensor.raw_data)
        if min(tensor.dims, default=0) < 0 or declared != stored:
            yield f"has a constant that declares {format_bytes(max(declared, 0))} and has {format_bytes(stored)}"


def _bad_sizes(model: onnx.ModelProto) -> Iterator[str]:
    """Values without a fixed shape, or larger than those of any network that is supported."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    image = fixed.graph.input[0].type.tensor_type.shape.dim
    if not image or any(side.dim_value < 1 for side in image[1:]):
        yield "takes images of unknown size"
        return
    if image[0].dim_value < 1:
        image_count = image[0].dim_param
        image[0].dim_value = images_at_once([side.dim_value for side in image[1:]])
    else:
        image_count = None  # it takes one number of images
    for side in (side for value in fixed.graph.output for side in value.type.tensor_type.shape.dim):
        if image_count is not None and side.dim_param == image_count:
            side.dim_value = image[0].dim_value
    inferred = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True).graph
    values = (value for value in [*inferred.value_info, *inferred.output] if value.type.tensor_type.HasField("shape"))
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    for name in (name for node in inferred.node for name in node.output if name):
        if not all(side.HasField("dim_value") for side in shapes.get(name, [onnx.TensorShapeProto.Dimension()])):
            yield f"has a value {short(name)} of unknown size"
        elif math.prod(side.dim_value for side in shapes[name]) > VALUES_AT_ONCE:
            yield f"has a value {short(name)} of more than {VALUES_AT_ONCE:,} numbers"
