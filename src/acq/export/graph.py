"""Converts a student to an ONNX model, in operators for which inference engines have integer kernels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import fx

from acq.errors import RequestError
from acq.export import joins, movement, operators, pools, selection
from acq.export.answers import FileAnswer
from acq.export.floating import FloatOperators, is_size
from acq.export.movement import zero_pads
from acq.export.registry import OPERATORS, NoFormError, convolution_attributes
from acq.export.writer import Value, Writer
from acq.files.screening import PRODUCER
from acq.network.constants import device_of
from acq.network.names import name_of
from acq.network.operators import ROLES, Role, operator_of, pads_with_values
from acq.quantization.layers import QuantConv2d, QuantLayer, QuantLinear
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student

__all__ = ["RAW", "onnx_model"]

IMAGES = "images"
RAW, NORMALISED = "bytes [N, H, W, C]", "normalised floats [N, C, H, W]"
_OPSET, _IR_VERSION = 21, 10  # the first with 4-bit integers
_REGISTERED = (joins, movement, operators, pools, selection)  # importing them fills OPERATORS


def onnx_model(
    student: Student,
    *,
    raw_images: bool = False,
    floating: bool = False,
    named: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Convert a student to an ONNX model for any number of images.

    A quantized tensor becomes QuantizeLinear to bytes, a Clip if it has fewer than 8 bits, and DequantizeLinear.
    Operators that only move values work on the bytes. Operators without a form of their own are translated by
    ``torch.onnx``, in floating point. Weights with up to 4 bits are stored as INT4, wider ones as INT8.
    Biases are floats, which are whole units of their accumulators after ``convert_to_integers``. The metadata hold the
    format, the normalisation and ``facts``.

    Args:
        student: The student.
        raw_images: Take bytes [N, H, W, C] instead of normalised images [N, C, H, W].
        floating: Write the same network in floating point, with batch norms folded and without quantizers. It is the
            reference for latency and size.
        named: Name nodes after the operators of the student, to find them in the graph of an engine.
        facts: More entries of the metadata.

    Returns:
        The model.

    Raises:
        RequestError: An operator cannot be exported, or ``raw_images`` is set and the normalisation is unknown.
    """
    student = student if device_of(student).type == "cpu" else copy.deepcopy(student).cpu()
    writer = Writer(floating, _padded_for_convolutions(student))
    image = next(node for node in student.graph.nodes if node.op == "placeholder")
    entrance, writer.values[image] = _entrance(writer, student, raw_images)
    others = _write_nodes(writer, student, named)
    returned = [_returned(writer, name, node, others.kind(node)) for name, node in student.outputs.items()]
    names = [value.name for value in returned]
    nodes, constants = writer.finished(names)
    graph = helper.make_graph(nodes, "acq", [entrance], returned, initializer=constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, producer_name=PRODUCER, ir_version=_IR_VERSION, opset_imports=opsets)
    metadata = {**(facts or {}), **_metadata(student, raw_images), **FileAnswer.of(student, names).facts()}
    helper.set_model_props(model, {key: _text(value) for key, value in metadata.items()})
    return model


def _returned(writer: Writer, name: str, node: fx.Node, kind: int) -> onnx.ValueInfoProto:
    """Write an output of the file under its name, with ``_`` appended while another value is called so."""
    taken = {IMAGES, *writer.constants, *(output for made in writer.nodes for output in made.output)}
    while not name or name in taken:
        name += "_"
    writer.add("Identity", [writer.floats(node)], name)
    size: list[str | int | None] = [side if side >= 0 else None for side in node.meta["shape"]]
    if size and size[0] is None:
        size[0] = "N"
    return helper.make_tensor_value_info(name, kind, size)


def _write_nodes(writer: Writer, student: Student, named: bool) -> FloatOperators:
    """Write every node of a student in its own form, or leave it to ``torch.onnx``."""
    others = FloatOperators(student, _OPSET)
    pieces: dict[fx.Node, list[Value]] = {}
    for node in student.graph.nodes:
        writer.operator = name_of(node) if named else ""
        if node.op == "get_attr":
            writer.tensors[node] = tensor = student.get_buffer(str(node.target)).cpu()
            writer.values[node] = Value(writer.constant(f"{name_of(node)}.constant", tensor.float().numpy()))
        elif node.op == "call_module":
            writer.values[node] = _module(writer, student, node)
        elif node.op == "call_function" and node.args and node.args[0] in pieces:
            source, place = node.args
            writer.values[node] = pieces[source][place]
        elif node.op == "call_function" and is_size(node):
            continue  # shapes are known except for the number of images
        elif node.op == "call_function":
            written = _function(writer, node, others, student)
            if isinstance(written, list):
                pieces[node] = written
            else:
                writer.values[node] = written
        elif node.op == "output":
            for value in student.outputs.values():
                writer.floats(value)  # what torch.onnx translates may read it
    others.write(writer)
    return others


def _function(writer: Writer, node: fx.Node, others: FloatOperators, student: Student) -> Value | list[Value]:
    """An operator: in its own form where it has one for these arguments, otherwise in floating point."""
    write = OPERATORS.get(operator_of(node))
    counted = [value for size in node.all_input_nodes if is_size(size) for value in size.all_input_nodes]
    inputs = [value for value in [*node.all_input_nodes, *counted] if value in others and not is_size(value)]
    if write is not None and all(map(others.is_float, inputs)):
        try:
            written: Value | list[Value] = write(writer, node)
        except NoFormError:
            pass
        else:
            return written
    return _on_grid(writer, node, others.take(writer, node), others, student)


def _on_grid(writer: Writer, node: fx.Node, value: Value, others: FloatOperators, student: Student) -> Value:
    """Values that are moved in floating point, back on the grid that they come from; a layer behind has bytes then."""
    quantizer = _grid_of(student, node) if others.is_float(node) else None
    return value if quantizer is None else writer.quantized(value, quantizer, len(node.meta["shape"]))


def _grid_of(student: Student, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer of the values that a node moves; None where there is none, or it divides channels."""
    while node.op == "call_function" and ROLES.get(operator_of(node)) == Role.MOVE and not pads_with_values(node):
        inputs = [value for value in node.all_input_nodes if value.op != "get_attr" and not is_size(value)]
        if not inputs:
            return None
        node = inputs[0]
    module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) and module.channel_scale is None else None


def _entrance(writer: Writer, student: Student, raw_images: bool) -> tuple[onnx.ValueInfoProto, Value]:
    """The model's input, and the normalised images."""
    channels, height, width = student.input_size
    size: list[str | int | None]
    if not raw_images:
        size = ["N", channels, height, width]
        return helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, size), Value(IMAGES)
    known = student.preprocessing
    if known is None:
        raise RequestError("the normalisation of images is unknown, so the file cannot take bytes; give preprocessing")
    columns = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (known.mean, known.std))
    mean, std = (writer.constant(name, column) for name, column in zip(("mean", "std"), columns, strict=True))
    pixels = writer.add("Cast", [writer.add("Transpose", [IMAGES], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    pixels = writer.add("Div", [pixels, writer.number(255.0)])
    normalised = writer.add("Div", [writer.add("Sub", [pixels, mean]), std])
    size = ["N", height, width, channels]
    return helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, size), Value(normalised)


def _module(writer: Writer, student: Student, node: fx.Node) -> Value:
    module = student.get_submodule(str(node.target))
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if isinstance(module, ActivationQuantizer):
        return writer.quantized(writer.values[source], module, len(node.meta["shape"]))
    assert isinstance(module, QuantLayer)
    axes, x = len(node.meta["shape"]), writer.floats(source)
    before = student.get_submodule(str(source.target)) if source.op == "call_module" else None
    channel_scale = before.channel_scale if isinstance(before, ActivationQuantizer) else None
    if isinstance(module, QuantConv2d):
        weight = writer.weight(module, channel_scale=channel_scale)
        return Value(
            writer.add("Conv", [x, weight, *writer.bias(module)], **_attributes(module, writer.values[source].pads))
        )
    assert isinstance(module, QuantLinear)
    if axes == 2:
        bias = writer.bias(module)
        product = writer.add("Gemm", [x, writer.weight(module, channel_scale=channel_scale)], transB=1)
    else:
        # in files for one image, ONNX Runtime joins a bias of one axis with the product, and computes both in floats
        bias = writer.bias(module, axes)
        product = writer.add("MatMul", [x, writer.weight(module, channel_scale=channel_scale, transposed=True)])
    # a separate addition: with a float bias inside the product, engines do not use their integer kernel
    return Value(writer.add("Add", [product, *bias]) if bias else product)


def _attributes(layer: QuantConv2d, around: tuple[int, ...]) -> dict[str, Any]:
    return convolution_attributes(
        layer.weight.shape[2:],
        pads=[own + other for own, other in zip(layer.pads, around, strict=True)],
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _padded_for_convolutions(student: Student) -> set[fx.Node]:
    """The nodes that pad images with zeros for quantized convolutions only."""

    def takes_pads(user: fx.Node) -> bool:
        module = student.get_submodule(str(user.target)) if user.op == "call_module" else None
        return isinstance(module, QuantConv2d)

    return {node for node in student.graph.nodes if zero_pads(node) and all(map(takes_pads, node.users))}


def _metadata(student: Student, raw_images: bool) -> dict[str, Any]:
    format, known = student.plan.format, student.preprocessing
    found: dict[str, Any] = {
        "bits": format.name,
        "placement": student.plan.placement,
        "images": RAW if raw_images else NORMALISED,
    }
    if known is not None:
        found |= {"input_size": known.input_size, "mean": known.mean, "std": known.std}
        found |= {} if known.framing is None else asdict(known.framing)
    return found


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
