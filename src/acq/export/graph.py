"""A student as an ONNX model, in the operators that inference engines have integer kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import fx

from acq.errors import RequestError
from acq.export.operators import OPERATORS, pads_of, refused
from acq.export.writer import Value, Writer
from acq.quantization.plan import operator_of
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import QuantConv2d, QuantLayer, QuantLinear, Student

IMAGES, LOGITS = "images", "logits"
RAW, NORMALISED = "bytes [N, H, W, C]", "normalised floats [N, C, H, W]"
_OPSET, _IR_VERSION = 21, 10  # the first with 4-bit integers


def onnx_model(
    student: Student, *, raw_images: bool = False, floating: bool = False, facts: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """The model, for any number of images: normalised [N, C, H, W], or bytes [N, H, W, C] with ``raw_images``.

    A value on a grid is QuantizeLinear to bytes, an integer Clip where it has fewer than 8 bits, and DequantizeLinear;
    what only moves values works on the bytes. Weights of up to 4 bits are stored in 4, wider ones in 8, biases as
    floats that are whole units of their accumulators once ``acq.quantization.integers`` was there. The metadata say what was
    quantized and how images are normalised, and hold ``facts``. With ``floating`` the same network is written in
    floating point, batch norms folded, no value on a grid: what a file of integers is measured against.

    Raises:
        RequestError: an operator has no translation, or ``raw_images`` is asked for and the normalisation not known.
    """
    writer = Writer(floating, _padded_for_convolutions(student))
    pieces: dict[fx.Node, list[Value]] = {}
    image = next(node for node in student.graph.nodes if node.op == "placeholder")
    entrance, writer.values[image] = _entrance(writer, student, image, raw_images)
    for node in student.graph.nodes:
        if node.op == "get_attr":
            tensor = student.get_buffer(str(node.target)).cpu().float().numpy()
            writer.values[node] = Value(writer.constant(f"constant.{node.target}", tensor))
        elif node.op == "call_module":
            writer.values[node] = _module(writer, student, node)
        elif node.op == "call_function" and node.args and node.args[0] in pieces:
            source, place = node.args
            writer.values[node] = pieces[source][place]
        elif node.op == "call_function" and _is_size(node):
            continue  # shapes are known, the number of images apart
        elif node.op == "call_function":
            if operator_of(node) not in OPERATORS:
                raise refused(node)
            written = OPERATORS[operator_of(node)](writer, node)
            (pieces if isinstance(written, list) else writer.values)[node] = written
        elif node.op == "output":
            writer.add("Identity", [writer.floats(node.args[0])], LOGITS)
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", student.classes])
    graph = helper.make_graph(writer.nodes, "acq", [entrance], [logits], initializer=list(writer.constants.values()))
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, producer_name="acq", ir_version=_IR_VERSION, opset_imports=opsets)
    metadata = {**(facts or {}), **_metadata(student, raw_images)}
    helper.set_model_props(model, {key: _text(value) for key, value in metadata.items()})
    return model


def _entrance(writer: Writer, student: Student, image: fx.Node, raw_images: bool) -> tuple[onnx.ValueInfoProto, Value]:
    channels, height, width = image.meta["shape"][1:]
    if not raw_images:
        size = ["N", channels, height, width]
        return helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, size), Value(IMAGES)
    known = student.preprocessing
    if known is None:
        raise RequestError("how images are normalised is not known, so it cannot become part of the file")
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
        return writer.on_grid(source.name, writer.values[source], module, len(node.meta["shape"]))
    assert isinstance(module, QuantLayer)
    bias, x = writer.bias(node.name, module), writer.floats(source)
    before = student.get_submodule(str(source.target)) if source.op == "call_module" else None
    channel_scale = before.channel_scale if isinstance(before, ActivationQuantizer) else None
    if isinstance(module, QuantConv2d):
        weight = writer.weight(node.name, module, channel_scale=channel_scale)
        return Value(writer.add("Conv", [x, weight, *bias], **_geometry(module, writer.values[source].pads)))
    assert isinstance(module, QuantLinear)
    if len(node.meta["shape"]) == 2:
        product = writer.add("Gemm", [x, writer.weight(node.name, module, channel_scale=channel_scale)], transB=1)
    else:
        product = writer.add("MatMul", [x, writer.weight(node.name, module, channel_scale=channel_scale, turned=True)])
    # added apart: a bias of floats inside the product keeps it from an engine's integer kernel
    return Value(writer.add("Add", [product, *bias]) if bias else product)


def _geometry(layer: QuantConv2d, around: tuple[int, ...]) -> dict[str, Any]:
    """The attributes that differ from what ONNX takes where there are none."""
    pads = [own + other for own, other in zip(layer.pads(), around, strict=True)]
    found: dict[str, tuple[Any, Any]] = {
        "strides": (layer.steps("stride"), (1, 1)),
        "dilations": (layer.steps("dilation"), (1, 1)),
        "group": (layer.groups, 1),
        "pads": (pads, [0, 0, 0, 0]),
    }
    given = {name: value for name, (value, usual) in found.items() if value != usual}
    return {"kernel_shape": list(layer.weight.shape[2:]), **given}


def _padded_for_convolutions(student: Student) -> set[fx.Node]:
    """The nodes that pad images of features with zeros for convolutions alone."""

    def takes_pads(user: fx.Node) -> bool:
        module = student.get_submodule(str(user.target)) if user.op == "call_module" else None
        return isinstance(module, QuantConv2d)

    return {node for node in student.graph.nodes if pads_of(node) and all(map(takes_pads, node.users))}


def _is_size(node: fx.Node) -> bool:
    """Whether a node gives a number, such as how many images there are, and not a tensor or several."""
    return operator_of(node).startswith(("aten.sym_size", "_operator."))


def _metadata(student: Student, raw_images: bool) -> dict[str, Any]:
    bits, known = student.plan.bits, student.preprocessing
    found = {
        "bits": f"w{bits.weight}a{bits.activation}",
        "placement": student.plan.placement,
        "classes": student.classes,
        "images": RAW if raw_images else NORMALISED,
    }
    return found if known is None else {**found, "input_size": known.input_size, "mean": known.mean, "std": known.std}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
