"""Writes an ONNX graph: collects its nodes and constants, and knows what each node of the student became."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from acq.errors import RequestError
from acq.export.order import needed_in_order
from acq.quantization.layers import QuantLayer, QuantLinear, scale_input_channels
from acq.quantization.packing import pack
from acq.quantization.quantizers import ActivationQuantizer

NO_BOUNDS = (-math.inf, math.inf)
NO_PADS = (0, 0, 0, 0)
_INT4_BITS = 4  # wider weights are stored as INT8
_BYTE = 255
_LONGEST_NAME = 32  # of a list of integers


@dataclass(frozen=True)
class Delayed:
    """An operator that commutes with quantizers, such as a maximum. It is written where its value is needed.

    Behind a quantizer it works on the bytes of its quantized parts. So a layer right before it runs on integers.

    Attributes:
        parts: Its inputs.
        write: Takes the names of its inputs and, if these are bytes, their quantizer. Returns the name of the output.
        operator: Its public name, which its nodes carry.
    """

    parts: tuple[Value, ...]
    write: Callable[[list[str], ActivationQuantizer | None], str]
    operator: str = ""


@dataclass(frozen=True)
class Value:
    """The output of a node in the file.

    Attributes:
        floats: Name of the float values; None until a consumer needs the floats of a quantized value.
        bytes: Name of the quantized uint8 values; None where the value is not quantized.
        qparams: Names of the scale and the zero point of ``bytes``.
        bounds: Bounds of a rectifier that is still to be applied to ``floats``. Rounding is monotone, so the
            quantizer behind it clips integers instead.
        pads: Zeros (top, left, bottom, right) that the convolutions behind it add.
        delayed: The operator that computes it, if that is still to be written.
    """

    floats: str | None
    bytes: str | None = None
    qparams: tuple[str, str] | None = None
    bounds: tuple[float, float] = NO_BOUNDS
    pads: tuple[int, ...] = NO_PADS
    delayed: Delayed | None = None


class Writer:
    """Collects nodes and constants. ``values`` has the value of each node of the student, ``tensors`` its constants.

    Args:
        floating: Write the network in floating point: float weights, no quantizers.
        padded: Nodes that pad the input of convolutions with zeros. The convolutions pad instead.

    Attributes:
        operator: The operator that is being written; nodes are named after it. Empty leaves them without names.
    """

    def __init__(self, floating: bool = False, padded: Container[fx.Node] = ()) -> None:
        self.floating, self.padded = floating, padded
        self.operator = ""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.values: dict[fx.Node, Value] = {}
        self.tensors: dict[fx.Node, Tensor] = {}
        self._kinds: dict[str, str] = {}

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Append an operator and return the name of its output."""
        output = output or f"v{len(self.nodes)}"  # short, because a file has hundreds
        self._kinds[output] = kind
        self._append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _append(self, node: onnx.NodeProto) -> None:
        if self.operator:
            node.name = part_name(self.operator, len(self.nodes))
        self.nodes.append(node)

    def split(self, source: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Split a tensor along an axis and return the names of the pieces."""
        names = [f"v{len(self.nodes)}_{piece}" for piece in range(len(sizes))]
        self._append(helper.make_node("Split", [source, self.integers(sizes)], names, axis=axis))
        return names

    def constant(self, name: str, value: Any) -> str:
        """Add a constant once and return its name.

        Raises:
            ValueError: Another constant has that name.
        """
        made = numpy_helper.from_array(np.asarray(value), name)
        if self.constants.setdefault(name, made) != made:
            raise ValueError(f"two constants are called {name}")
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Add a list of 64-bit integers, such as a shape, and return its name."""
        name = "_".join(map(str, values))
        if len(name) > _LONGEST_NAME:
            name = hashlib.sha256(name.encode()).hexdigest()[:_LONGEST_NAME]
        return self.constant(f"integers_{name}", np.array(values, np.int64))

    def scales(self, values: Sequence[float]) -> str:
        """Add the factors of a resize and return their name."""
        return self.constant("scales_" + "_".join(map(repr, values)), np.array(values, np.float32))

    def number(self, value: float) -> str:
        """Add a 32-bit float and return its name."""
        return self.constant(f"number_{value!r}", np.float32(value))

    def byte(self, value: int) -> str:
        """Add a byte and return its name."""
        return self.constant(f"byte_{value}", np.uint8(value))

    def weight(self, layer: QuantLayer, *, channel_scale: Tensor | None = None, transposed: bool = False) -> str:
        """Add a layer's weight: up to 4 bits as INT4, wider ones as INT8.

        Engines convert INT4 to INT8, for which they have kernels, when they load the file.

        Args:
            layer: The layer.
            channel_scale: The divisor [C] of the layer's input. A file in floating point does not divide, so its weight
                is divided.
            transposed: Write a matrix [inputs, outputs].

        Returns:
            The name of the weight as floats.
        """
        quantizer, name = layer.weight_quantizer, layer.name
        if self.floating:
            weight = quantizer(layer.weight).detach()
            weight = (weight if channel_scale is None else scale_input_channels(layer, weight, 1 / channel_scale)).cpu()
            return self.constant(f"{name}.weight", (weight.T if transposed else weight).numpy())
        integers = quantizer.integers(layer.weight.detach()).cpu()
        integers = integers.T.contiguous() if transposed else integers
        stored = f"{name}.weight"
        if quantizer.bits <= _INT4_BITS:
            raw = pack(integers, _INT4_BITS).numpy().tobytes()
            self.constants[stored] = helper.make_tensor(stored, TensorProto.INT4, integers.shape, raw, raw=True)
            stored = self.add("Cast", [stored], to=TensorProto.INT8)
        else:
            self.constant(stored, integers.numpy())
        qparams = [self.constant(f"{name}.scale", quantizer.scale.detach().cpu().numpy())]
        if isinstance(layer, QuantLinear):  # engines have no integer kernel for products without a zero point
            zeros = np.zeros(quantizer.scale.shape, np.int8)
            qparams.append(self.constant(f"zeros_{zeros.size}", zeros))
        return self.add("DequantizeLinear", [stored, *qparams], axis=1 if transposed else 0)

    def bias(self, layer: QuantLayer, axes: int = 1) -> list[str]:
        """Add a layer's bias and return its name; an empty list if the layer has none.

        It is stored as floats. After the conversion to integers they are whole units of the accumulator, and integer
        kernels convert them to these units. It has the channels behind ``axes`` - 1 axes of one value.
        """
        if layer.bias is None:
            return []
        name = f"{layer.name}.bias" + (f".{axes}" if axes > 1 else "")  # a layer may be used with several axes
        return [self.constant(name, layer.bias.detach().cpu().numpy().reshape(*(1,) * (axes - 1), -1))]

    def quantized(self, source: Value, quantizer: ActivationQuantizer, dimensions: int) -> Value:
        """Quantize a value: QuantizeLinear, then a Clip of bytes to the quantizer's width and the rectifier's bounds.

        Args:
            source: The value.
            quantizer: Its quantizer.
            dimensions: Number of dimensions of the value.

        Returns:
            The quantized value.

        Raises:
            RequestError: The quantizer divides channels behind a rectifier.
        """
        if self.floating:
            return source
        scale, zero_point = quantizer.scale.item(), int(quantizer.zero_point.item())
        qparams = (
            self.constant(f"scale_{scale!r}", np.float32(scale)),  # by value, so that equal scales are shared
            self.constant(f"{quantizer.name}.zero_point", np.uint8(zero_point)),
        )
        name = self._rounded(source, quantizer, dimensions, qparams)
        bounds = [byte_of(bound, quantizer) for bound in source.bounds]
        if bounds != [0, _BYTE]:
            name = self.add("Clip", [name, *map(self.byte, bounds)])
        return Value(None, name, qparams)

    def _rounded(self, source: Value, quantizer: ActivationQuantizer, dimensions: int, qparams: tuple[str, str]) -> str:
        """The name of a value's bytes, without its bounds and those of the quantizer's width."""
        if source.delayed is None:
            floats = self._divided(source, quantizer, dimensions)
            return self._table(floats, quantizer) or self.add("QuantizeLinear", [floats, *qparams])
        names = [
            self._rounded(part, quantizer, dimensions, qparams)
            if part.bounds == NO_BOUNDS
            else str(self.quantized(part, quantizer, dimensions).bytes)
            for part in source.delayed.parts
        ]
        return self._joined(source.delayed, names, quantizer)

    def _table(self, floats: str, quantizer: ActivationQuantizer) -> str | None:
        """The name of a constant's bytes; None where ``floats`` are computed.

        OpenVINO (2026.4.1) opens no file in which a constant that the file quantizes is a factor or a summand.
        """
        if floats not in self.constants:
            return None
        values = torch.from_numpy(numpy_helper.to_array(self.constants[floats]).copy())
        return self.constant(f"{floats}.{quantizer.name}", quantizer.integers(values).numpy())

    def _joined(self, delayed: Delayed, names: list[str], quantizer: ActivationQuantizer | None) -> str:
        """Write an operator that is delayed; its nodes carry its own name."""
        current, self.operator = self.operator, delayed.operator
        name = delayed.write(names, quantizer)
        self.operator = current
        return name

    def _divided(self, source: Value, quantizer: ActivationQuantizer, dimensions: int) -> str:
        """The name of a value's floats without its bounds, divided by the quantizer's ``channel_scale``."""
        floats = self.floats_of(replace(source, bounds=NO_BOUNDS))
        if quantizer.channel_scale is None or bool((quantizer.channel_scale == 1).all()):
            return floats
        if source.bounds != NO_BOUNDS:  # a requantizer's input is quantized, so its bounds are applied
            raise RequestError(f"{quantizer.name} divides channels right behind a rectifier; quantize again")
        # as in the student; QuantizeLinear with one scale per channel is a hundred times slower in ONNX Runtime
        factor = quantizer.channel_factor(dimensions).cpu().numpy()
        return self.add("Mul", [floats, self.constant(f"{quantizer.name}.channel_factor", factor)])

    def floats(self, node: fx.Node) -> str:
        """The name of a node's floats, written when first needed, with the rectifier's bounds applied."""
        value = self.values[node]
        name = self.floats_of(value)
        self.values[node] = replace(value, floats=name, bounds=NO_BOUNDS, delayed=None)
        return name

    def floats_of(self, value: Value) -> str:
        """The name of a value's floats, with the rectifier's bounds applied."""
        low, high = value.bounds
        if value.floats is not None:
            name = value.floats
        elif value.delayed is not None:
            name = self._joined(value.delayed, [self.floats_of(part) for part in value.delayed.parts], None)
        else:
            name = self._dequantized(value)
        if (low, high) == NO_BOUNDS:
            return name
        if low == 0 and high == math.inf:
            return self.add("Relu", [name])
        return self.add("Clip", [name, *map(self.number, value.bounds)])

    def finished(self, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """The nodes that ``outputs`` need, each behind those that it reads, and their constants."""
        nodes, needed = needed_in_order(self.nodes, outputs)
        return nodes, [value for name, value in self.constants.items() if name in needed]

    def _dequantized(self, value: Value) -> str:
        assert value.bytes is not None
        assert value.qparams is not None
        name = value.bytes
        if self._kinds.get(name) == "Transpose":
            # OpenVINO moves a Transpose behind DequantizeLinear, and computes a layer behind that in floating point;
            # this Clip changes no byte and stops it
            name = self.add("Clip", [name, self.byte(0), self.byte(_BYTE)])
        return self.add("DequantizeLinear", [name, *value.qparams])


def part_name(operator: str, count: int) -> str:
    """The name of the ``count``-th node of a file, which belongs to an operator of the student."""
    return f"{operator}/{count}"


def operator_of_part(name: str) -> str:
    """The operator's public name in the name of a node."""
    return name.rpartition("/")[0]


def byte_of(value: float, quantizer: ActivationQuantizer) -> int:
    """The byte of a value behind a quantizer. An infinite value gives a bound that clips nothing."""
    return int(quantizer.integers(torch.tensor(value)).item())
