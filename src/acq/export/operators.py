"""How operators that compute are written in ONNX. Add one with ``@writes("name.overload")``.

Operators that move values are in ``acq.export.movement``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from acq.export.registry import argument, changed, input_of, moved, operand, refused, tiles, writes
from acq.export.writer import Value, Writer, convolution_attributes
from acq.network.operators import operator_of
from acq.quantization.layers import pads_around, pair

_LARGEST = float(np.finfo(np.float32).max)

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


def _filled(writer: Writer, value: float, count: int) -> str:
    return writer.constant(f"{count}_times_{value!r}", np.full(count, value, np.float32))


# rectifiers: bounds that the quantizer behind them applies


@writes("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _rectifier(writer: Writer, node: fx.Node) -> Value:
    low, high = _BOUNDS[operator_of(node)](node)
    value = writer.values[input_of(node)]
    if (low, high) == (0, None) and value.qparams is not None:  # stays quantized
        bounds = value.qparams[1], writer.constant("byte_255", np.uint8(255))
        return changed(value, lambda name: writer.add("Clip", [name, *bounds]))
    name = writer.floats(input_of(node))
    return Value(name, bounds=(-math.inf if low is None else float(low), math.inf if high is None else float(high)))


_BOUNDS: dict[str, Callable[[fx.Node], tuple[Any, Any]]] = {
    "aten.relu.default": lambda _: (0, None),
    "aten.relu6.default": lambda _: (0, 6),
    "aten.hardtanh.default": lambda node: (argument(node, 1, -1), argument(node, 2, 1)),
    "aten.clamp.default": lambda node: (argument(node, 1), argument(node, 2)),
    "aten.clamp_min.default": lambda node: (argument(node, 1), None),
    "aten.clamp_max.default": lambda node: (None, argument(node, 1)),
}


# pools


@writes("avg_pool2d.default")
def _average_pool(writer: Writer, node: fx.Node) -> Value:
    kernel, padding = pair(argument(node, 1)), pair(argument(node, 3, 0))
    ceil_mode, counted = bool(argument(node, 4, False)), bool(argument(node, 5, True)) and any(padding)
    if len(node.args) > 6:
        raise refused(node, " with a divisor of its own")
    if ceil_mode and counted:  # engines differ in the divisor of the last window
        raise refused(node, " with ceil_mode and padding that counts")
    return Value(
        writer.add(
            "AveragePool",
            [writer.floats(input_of(node))],
            kernel_shape=kernel,
            strides=pair(argument(node, 2) or kernel),
            pads=padding * 2,
            ceil_mode=int(ceil_mode),
            count_include_pad=int(counted),
        )
    )


@writes("adaptive_avg_pool2d.default")
def _adaptive_average_pool(writer: Writer, node: fx.Node) -> Value:
    x = writer.floats(input_of(node))
    before, after = (list(n.meta["shape"][2:]) for n in (input_of(node), node))
    if after == [1, 1]:
        return Value(writer.add("GlobalAveragePool", [x]))
    return Value(writer.add("AveragePool", [x], **tiles(node, before, after)))


@writes("mean.dim")
def _mean(writer: Writer, node: fx.Node) -> Value:
    source = input_of(node)
    rank = len(source.meta["shape"])
    axes = sorted(axis % rank for axis in argument(node, 1))
    keep = bool(argument(node, 2, False))
    if rank == 4 and axes == [2, 3]:  # the operator that has an integer kernel
        pooled = writer.add("GlobalAveragePool", [writer.floats(source)])
        return Value(pooled if keep else writer.add("Flatten", [pooled], axis=1))
    return Value(writer.add("ReduceMean", [writer.floats(source), writer.integers(axes)], keepdims=int(keep)))


@writes("max_pool2d.default")
def _max_pool(writer: Writer, node: fx.Node) -> Value:
    kernel = pair(argument(node, 1))
    return moved(
        writer,
        node,
        "MaxPool",
        kernel_shape=kernel,
        strides=pair(argument(node, 2) or kernel),
        pads=pair(argument(node, 3, 0)) * 2,
        dilations=pair(argument(node, 4, 1)),
        ceil_mode=int(argument(node, 5, False)),
    )


@writes("adaptive_max_pool2d.default")
def _adaptive_max_pool(writer: Writer, node: fx.Node) -> list[Value]:
    """The maxima, which ``getitem`` selects; their indices are not written."""
    taken, *others = node.users
    if others or taken.args[1] != 0:
        raise refused(node, " for its indices")
    before, after = list(input_of(node).meta["shape"][2:]), list(taken.meta["shape"][2:])
    return [moved(writer, node, "MaxPool", **tiles(node, before, after))]
