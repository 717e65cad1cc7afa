"""How operators that compute are written in ONNX. Add one with ``@writes("name.overload")``.

Pools are in ``acq.export.pools``, operators that move values in ``movement``, ``selection`` and ``joins``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from acq.export.registry import argument, changed, convolution_attributes, input_of, operand, refused, writes
from acq.export.writer import NO_BOUNDS, Value, Writer
from acq.network.names import name_of
from acq.network.operators import operator_of
from acq.quantization.layers import pads_around, pair

_LARGEST = float(np.finfo(np.float32).max)
_EXACT_SOFTPLUS = 17  # from this input on, softplus is the input itself in 32 bits

# operators on floats whose arguments are tensors and numbers only


def _computes(kind: str, *operators: str, **attributes: Any) -> None:
    @writes(*operators)
    def write(writer: Writer, node: fx.Node) -> Value:
        return Value(writer.add(kind, [operand(writer, value) for value in node.args], **attributes))


_computes("Mul", "mul.Tensor", "mul.Scalar")
_computes("Div", "div.Tensor", "div.Scalar")
_computes("Sigmoid", "sigmoid.default")
_computes("Tanh", "tanh.default")
_computes("HardSwish", "hardswish.default")
_computes("HardSigmoid", "hardsigmoid.default", alpha=1 / 6, beta=0.5)
_computes("Mish", "mish.default")
_computes("Selu", "selu.default")


@writes("silu.default")
def _silu(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(input_of(node))
    return Value(writer.add("Mul", [x, writer.add("Sigmoid", [x])]))


@writes("gelu.default")
def _gelu(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(input_of(node))
    return Value(writer.add("Gelu", [x], approximate=node.kwargs.get("approximate", "none")))


@writes("leaky_relu.default")
def _leaky_relu(writer: Writer, node: fx.Node) -> Value:
    return Value(writer.add("LeakyRelu", [writer.floats(input_of(node))], alpha=float(argument(node, 1, 0.01))))


@writes("prelu.default")
def _prelu(writer: Writer, node: fx.Node) -> Value:
    """One slope becomes a leaky ReLU, for which ONNX Runtime has an integer kernel."""
    x, slopes = writer.floats(input_of(node)), writer.tensors.get(argument(node, 1))
    if slopes is None:
        raise refused(node, " with slopes that are no constants")
    if slopes.numel() == 1:
        return Value(writer.add("LeakyRelu", [x], alpha=float(slopes)))
    column = slopes.reshape(-1, *(1,) * (len(node.meta["shape"]) - 2)).numpy()
    return Value(writer.add("PRelu", [x, writer.constant(f"{name_of(node)}.slopes", column)]))


@writes("softplus.default")
def _softplus(writer: Writer, node: fx.Node) -> Value:
    x, beta = writer.floats(input_of(node)), float(argument(node, 1, 1.0))
    if argument(node, 2, 20.0) < _EXACT_SOFTPLUS:
        raise refused(node, " with a low threshold")
    if beta == 1:
        return Value(writer.add("Softplus", [x]))
    found = writer.add("Softplus", [writer.add("Mul", [x, writer.number(beta)])])
    return Value(writer.add("Div", [found, writer.number(beta)]))


@writes("elu.default", "celu.default")
def _elu(writer: Writer, node: fx.Node) -> Value:
    if len(node.args) > 2:
        raise refused(node, " with scales of its own")
    kind = "Elu" if operator_of(node) == "aten.elu.default" else "Celu"
    return Value(writer.add(kind, [writer.floats(input_of(node))], alpha=float(argument(node, 1, 1.0))))


@writes("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar")
def _add(writer: Writer, node: fx.Node) -> Value:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        raise refused(node, " with a factor of its own (alpha)")
    operands = [operand(writer, value) for value in node.args]
    name = operator_of(node)
    kind = "Add" if "add" in name else "Sub"
    return Value(writer.add(kind, operands[::-1] if "rsub" in name else operands))


# what attention and its neighbours compute in floating point


@writes("matmul.default", "bmm.default", "mm.default")
def _matrix_product(writer: Writer, node: fx.Node) -> Value:
    return Value(writer.add("MatMul", [operand(writer, value) for value in node.args]))


@writes("softmax.int")
def _softmax(writer: Writer, node: fx.Node) -> Value:
    """Behind bytes with an Abs, which changes no value: it keeps the operator in floating point.

    ONNX Runtime computes a softmax between bytes on integers, and several percent of them differ by a level.
    """
    quantized = writer.values[input_of(node)].bytes is not None
    found = writer.add("Softmax", [writer.floats(input_of(node))], axis=argument(node, 1))
    return Value(writer.add("Abs", [found]) if quantized else found)


@writes("layer_norm.default")
def _layer_norm(writer: Writer, node: fx.Node) -> Value:
    axes = argument(node, 1)
    if any(size < 0 for size in node.meta["shape"][-len(axes) :]):
        raise refused(node, " over images")
    weight, bias = argument(node, 2), argument(node, 3)
    factor = writer.floats(weight) if isinstance(weight, fx.Node) else _filled(writer, 1.0, *axes)
    shift = [writer.floats(bias)] if isinstance(bias, fx.Node) else []
    inputs = [writer.floats(input_of(node)), factor, *shift]
    return Value(writer.add("LayerNormalization", inputs, axis=-len(axes), epsilon=float(argument(node, 4, 1e-5))))


# layers that are kept in floating point


@writes("conv2d.default", "conv2d.padding")
def _convolution(writer: Writer, node: fx.Node) -> Value:
    kernel, dilation = node.args[1].meta["shape"][2:], pair(argument(node, 5, 1))  # type: ignore[union-attr]
    attributes = convolution_attributes(
        kernel,
        pads=pads_around(argument(node, 4, 0), kernel, dilation),
        stride=pair(argument(node, 3, 1)),
        dilation=dilation,
        groups=argument(node, 6, 1),
    )
    return Value(writer.add("Conv", _layer_inputs(writer, node), **attributes))


@writes("linear.default")
def _linear(writer: Writer, node: fx.Node) -> Value:
    x, weight, *bias = _layer_inputs(writer, node)
    if len(node.meta["shape"]) == 2:
        return Value(writer.add("Gemm", [x, weight, *bias], transB=1))
    product = writer.add("MatMul", [x, writer.add("Transpose", [weight], perm=[1, 0])])
    return Value(writer.add("Add", [product, *bias]) if bias else product)


@writes("batch_norm.default")
def _batch_norm(writer: Writer, node: fx.Node) -> Value:
    x, weight, bias, mean, var, training, _, epsilon, _ = node.args
    if training or not isinstance(mean, fx.Node) or not isinstance(var, fx.Node):
        raise refused(node, " with statistics of the batch")
    channels = node.meta["shape"][1]
    factor = writer.floats(weight) if isinstance(weight, fx.Node) else _filled(writer, 1.0, channels)
    shift = writer.floats(bias) if isinstance(bias, fx.Node) else _filled(writer, 0.0, channels)
    inputs = [operand(writer, x), factor, shift, writer.floats(mean), writer.floats(var)]
    return Value(writer.add("BatchNormalization", inputs, epsilon=epsilon))


def _layer_inputs(writer: Writer, node: fx.Node) -> list[str]:
    """The names of a layer's input and weight, and of its bias if it has one."""
    given = [*node.args[:2], argument(node, 2, node.kwargs.get("bias"))]
    x, *constants = (writer.floats(value) for value in given if isinstance(value, fx.Node))
    if writer.values[input_of(node)].bytes is not None:
        # ONNX Runtime quantizes the weights of a layer right behind DequantizeLinear; this Clip changes no value
        x = writer.add("Clip", [x, writer.number(-_LARGEST), writer.number(_LARGEST)])
    return [x, *constants]


def _filled(writer: Writer, value: float, *sizes: int) -> str:
    return writer.constant(f"{'_'.join(map(str, sizes))}_times_{value!r}", np.full(sizes, value, np.float32))


# rectifiers: bounds that the quantizer behind them applies


@writes("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _rectifier(writer: Writer, node: fx.Node) -> Value:
    low, high = _BOUNDS[operator_of(node)](node)
    value = writer.values[input_of(node)]
    if (low, high) == (0, None) and value.qparams is not None:  # stays quantized
        zero_point = value.qparams[1]
        return changed(value, lambda name: writer.add("Clip", [name, zero_point, writer.byte(255)]))
    bounds = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if value.delayed is not None and value.bounds == NO_BOUNDS:
        return replace(value, bounds=bounds)
    return Value(writer.floats(input_of(node)), bounds=bounds)


_BOUNDS: dict[str, Callable[[fx.Node], tuple[Any, Any]]] = {
    "aten.relu.default": lambda _: (0, None),
    "aten.relu6.default": lambda _: (0, 6),
    "aten.hardtanh.default": lambda node: (argument(node, 1, -1), argument(node, 2, 1)),
    "aten.clamp.default": lambda node: (argument(node, 1), argument(node, 2)),
    "aten.clamp_min.default": lambda node: (argument(node, 1), None),
    "aten.clamp_max.default": lambda node: (None, argument(node, 1)),
}
