"""An ONNX graph as plain values: nodes with their attributes, and constants."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from acq.errors import RequestError, listed, short
from acq.files.screening import DOMAINS
from acq.zoo.onnx.refusal import label, way_out
from acq.zoo.onnx.registry import OPERATORS, Node

_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TYPES = {
    TensorProto.FLOAT, *_FLOATS, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16,
    TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64, TensorProto.BOOL,
}  # fmt: skip
_PLAIN = {AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS}
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
_VALUES = ("value_int", "value_ints", "value_float", "value_floats")
_OPSETS = range(7, 27)


@dataclass(frozen=True)
class Graph:
    """A graph that can be read.

    Attributes:
        nodes: In the order of their computation.
        constants: Arrays by the names of their values.
        entry: The name of the images.
        exits: Names of what it returns.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]]
    entry: str
    exits: tuple[str, ...]


def graph_of(model: onnx.ModelProto, entry: str, exits: tuple[str, ...]) -> Graph:
    """Read a model's graph.

    Args:
        model: With its constants inside.
        entry: The name of the input that takes images.
        exits: Names of values to return; nodes that these do not need are left out.

    Raises:
        RequestError: A node's operator or a constant's type cannot be read.
    """
    protos, opset = needed(model, exits), _opset(model)
    cuts = of_the_images(model, entry) - {entry}
    for proto in protos:
        require_readable(proto, cuts)
    used = {name for proto in protos for name in proto.input}
    stored = (tensor for tensor in model.graph.initializer if tensor.name in used)
    constants = {tensor.name: _array(tensor, tensor.name) for tensor in stored}
    nodes: list[Node] = []
    for proto in protos:
        node = _node(proto, opset, cuts)
        if node.kind == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    return Graph(tuple(nodes), constants, entry, exits)


def needed(model: onnx.ModelProto, exits: tuple[str, ...]) -> list[onnx.NodeProto]:
    """The nodes that some values need, in order."""
    wanted, found = set(exits), []
    for proto in reversed(model.graph.node):
        if not wanted.isdisjoint(proto.output):
            found.append(proto)
            wanted.update(name for name in proto.input if name)
    return found[::-1]


def of_the_images(model: onnx.ModelProto, entry: str) -> set[str]:
    """The values that follow from pixels, and not from the size of the images alone."""
    found = {entry}
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and not found.isdisjoint(read_by(node)):
            found.update(node.output)
    return found


def read_by(node: onnx.NodeProto) -> list[str]:
    """What a node and the graphs inside it read from outside."""
    names, inner = list(node.input), [part.g for part in node.attribute if part.type == AttributeProto.GRAPH]
    for graph in inner:
        made = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        made |= {name for each in graph.node for name in each.output}
        names += [name for each in graph.node for name in read_by(each) if name not in made]
    return names


def require_readable(proto: onnx.NodeProto, cuts: Collection[str] = ()) -> None:
    """Refuse a node whose operator is not read.

    Args:
        proto: The node.
        cuts: Names of values at which the graph can be cut.

    Raises:
        RequestError: It is not; the message has the way out.
    """
    node = _bare(proto, 0, cuts)
    kind, name, cut = node.kind, label(node), way_out(node)
    if kind in _CONTROL or any(part.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for part in proto.attribute):
        raise RequestError(f"{name} is control flow, which has no fixed graph; {cut}")
    if proto.domain not in DOMAINS:
        raise RequestError(f"{name} is of the domain {short(proto.domain)}, which is not read; {cut}")
    if kind.startswith(("QLinear", "DynamicQuantize")) or kind.endswith(("Integer", "uantizeLinear")):
        raise RequestError(
            f"{name} shows that the file is quantized already; give the file of floats that it was made from"
        )
    if kind not in OPERATORS and kind != "Constant":
        raise RequestError(f"{name} is no operator that acq reads; {cut}")


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    if not versions or versions[0] not in _OPSETS:
        raise RequestError(
            f"the file has version {listed(map(str, versions)) or 'none'} of the ONNX operators; "
            f"give one of {_OPSETS[0]} to {_OPSETS[-1]}"
        )
    return int(versions[0])


def _node(proto: onnx.NodeProto, opset: int, cuts: Collection[str]) -> Node:
    node = _bare(proto, opset, cuts)
    return replace(node, attributes={part.name: _attribute(node, part) for part in proto.attribute})


def _bare(proto: onnx.NodeProto, opset: int, cuts: Collection[str]) -> Node:
    """A node without its attributes."""
    cut = next((name for name in read_by(proto) if name in cuts), "")
    return Node(proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), {}, opset, cut)


def _attribute(node: Node, part: AttributeProto) -> Any:
    if part.type == AttributeProto.STRING:
        return part.s.decode("utf-8", "replace")
    if part.type == AttributeProto.TENSOR:
        return _array(part.t, label(node))
    if part.type in _PLAIN:
        return helper.get_attribute_value(part)
    raise RequestError(f"{label(node)} has an attribute {short(part.name)} that is not read; {way_out(node)}")


def _constant(node: Node) -> NDArray[Any]:
    if "value" in node.attributes:
        found: NDArray[Any] = np.asarray(node.attributes["value"])
        return found
    for name in _VALUES:
        if name in node.attributes:
            value = node.attributes[name]
            return np.asarray(value, np.float32 if "float" in name else np.int64)
    raise RequestError(f"{label(node)} is a constant of a type that is not read; {way_out(node)}")


def _array(tensor: TensorProto, name: str) -> NDArray[Any]:
    """A constant: floats in 32 bits, integers in 64."""
    if tensor.data_type not in _TYPES:
        raise RequestError(f"the constant {short(name)} has a type that is not read; export it as floats")
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # the sizes of its data are a stranger's
        raise RequestError(f"the constant {short(name)} does not have as many numbers as its shape") from error
    if array.dtype.kind == "b":
        return array
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)


def half_types(model: onnx.ModelProto) -> Iterator[str]:
    """Names of the floating-point types of constants that become 32 bits."""
    constants = [part.t for node in model.graph.node if node.op_type == "Constant" for part in node.attribute]
    found = {tensor.data_type for tensor in (*model.graph.initializer, *constants)} & set(_FLOATS)
    yield from sorted(TensorProto.DataType.Name(kind).lower() for kind in found)
