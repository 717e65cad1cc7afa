"""An ONNX graph being written: its nodes, its constants, and what each node of the student has become in it."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from acq.errors import RequestError
from acq.quantization.quantizers import ActivationQuantizer, pack
from acq.quantization.student import QuantLayer, QuantLinear, times_inputs

NO_BOUNDS = (-math.inf, math.inf)
NO_PADS = (0, 0, 0, 0)


@dataclass(frozen=True)
class Value:
    """A node's values in the file: the name of the floats and, where they lie on a grid, of the bytes.

    Floats of a value on a grid have no name until somebody reads them. ``bounds`` are those of a rectifier that is
    still to be applied to the floats: rounding is monotone, so a quantizer does it by clipping bytes. ``pads`` (top,
    left, bottom, right) are zeros that the convolutions after it put around.
    """

    floats: str | None
    bytes: str | None = None
    grid: tuple[str, str] | None = None  # names of the scale and the zero point
    bounds: tuple[float, float] = NO_BOUNDS
    pads: tuple[int, ...] = NO_PADS


class Writer:
    """Collects nodes and constants; ``values`` holds what each node of the student has become.

    A ``floating`` one writes the same network in floating point: weights as floats, quantizers left out. ``padded`` are
    the nodes that pad with zeros what convolutions alone read, which these then do themselves.
    """

    def __init__(self, floating: bool = False, padded: Container[fx.Node] = ()) -> None:
        self.floating, self.padded = floating, padded
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.values: dict[fx.Node, Value] = {}

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Append an operator; the name of its output."""
        output = output or f"v{len(self.nodes)}"  # short: a file has hundreds
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def split(self, source: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Cut a tensor along an axis; the names of the pieces."""
        names = [f"v{len(self.nodes)}_{piece}" for piece in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [source, self.integers(sizes)], names, axis=axis))
        return names

    def constant(self, name: str, value: Any) -> str:
        """The name of a constant, kept once; ValueError if another one has that name."""
        made = numpy_helper.from_array(np.asarray(value), name)
        if self.constants.setdefault(name, made) != made:
            raise ValueError(f"two constants of the name {name}")
        return name

    def integers(self, values: Sequence[int]) -> str:
        """The name of a list of 64-bit integers, such as a shape."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """The name of a 32-bit float."""
        return self.constant(f"number_{value!r}", np.float32(value))

    def weight(self, name: str, layer: QuantLayer, *, channel_scale: Tensor | None = None, turned: bool = False) -> str:
        """The name of a layer's weight, stored in 4 bits a value where these hold it and in 8 otherwise.

        Engines fold the widening to 8 bits, for which they have kernels, when they load the file. A ``turned`` one is
        a matrix [inputs, outputs]. In floating point nothing divides what the layer reads by ``channel_scale`` [C], so its
        weight is divided by it.
        """
        quantizer = layer.weight_quantizer
        if self.floating:
            weight = quantizer(layer.weight).detach()
            weight = (weight if channel_scale is None else times_inputs(layer, weight, 1 / channel_scale)).cpu()
            return self.constant(f"{name}.weight", (weight.T if turned else weight).numpy())
        integers = quantizer.integers(layer.weight.detach()).cpu()
        integers = integers.T.contiguous() if turned else integers
        stored = f"{name}.weight"
        if quantizer.bits <= 4:
            raw = pack(integers, 4).numpy().tobytes()
            self.constants[stored] = helper.make_tensor(stored, TensorProto.INT4, integers.shape, raw, raw=True)
            stored = self.add("Cast", [stored], to=TensorProto.INT8)
        else:
            self.constant(stored, integers.numpy())
        scale = self.constant(f"{name}.scale", quantizer.scale.detach().cpu().numpy())
        grid = [scale]
        if isinstance(layer, QuantLinear):  # without a zero point engines have no integer kernel for products
            zeros = np.zeros(quantizer.scale.shape, np.int8)
            grid.append(self.constant(f"zeros_{zeros.size}", zeros))
        return self.add("DequantizeLinear", [stored, *grid], axis=1 if turned else 0)

    def bias(self, name: str, layer: QuantLayer) -> list[str]:
        """The name of a layer's bias, if it has one.

        As floats, which a frozen student's whole units are exactly: integer kernels turn them into these units.
        """
        if layer.bias is None:
            return []
        return [self.constant(f"{name}.bias", layer.bias.detach().cpu().numpy())]

    def on_grid(self, name: str, source: Value, quantizer: ActivationQuantizer, dimensions: int) -> Value:
        """The bytes of a value of so many ``dimensions``, clipped to the quantizer's width and to the bounds of the
        rectifier before it."""
        if self.floating:
            return source
        scale, zero = quantizer.scale.item(), int(quantizer.zero_point.item())
        grid = (
            self.constant(f"step_{scale!r}", np.float32(scale)),  # by value: grids that are alike share them
            self.constant(f"{name}.zero", np.uint8(zero)),
        )
        unclipped = source.floats if source.floats is not None else self._dequantized(source)
        if quantizer.channel_scale is not None and not bool((quantizer.channel_scale == 1).all()):
            if source.bounds != NO_BOUNDS:  # what has a ratio was on a grid before, in every student that was built
                raise RequestError(f"{name} divides channels right after a rectifier; quantize again")
            # as in the student; with a scale a channel QuantizeLinear takes ONNX Runtime a hundred times as long
            factor = self.constant(f"{name}.factor", quantizer.factor(dimensions).cpu().numpy())
            unclipped = self.add("Mul", [unclipped, factor])
        found = self.add("QuantizeLinear", [unclipped, *grid])
        inverse = np.float32((1 / quantizer.scale).item())  # the student multiplies by it, in 32 bits
        low, high = (_clipped(float(np.float32(b) * inverse), zero, quantizer.qmax) for b in source.bounds)
        if (low, high) != (0, 255):
            found = self.add("Clip", [found, *(self.constant(f"byte_{b}", np.uint8(b)) for b in (low, high))])
        return Value(None, found, grid)

    def floats(self, node: fx.Node) -> str:
        """The name of a node's values in floating point, written when first asked for."""
        value = self.values[node]
        low, high = value.bounds
        if value.floats is None:
            name = self._dequantized(value)
        elif (low, high) == NO_BOUNDS:
            return value.floats
        elif low == 0 and high == math.inf:
            name = self.add("Relu", [value.floats])
        else:
            name = self.add("Clip", [value.floats, *map(self.number, value.bounds)])
        self.values[node] = replace(value, floats=name, bounds=NO_BOUNDS)
        return name

    def _dequantized(self, value: Value) -> str:
        assert value.bytes is not None
        assert value.grid is not None
        return self.add("DequantizeLinear", [value.bytes, *value.grid])


def _clipped(steps: float, zero: int, high: int) -> int:
    """The byte of a bound that lies ``steps`` from zero, half to even as quantizers round; infinite ones are ends."""
    if math.isinf(steps):
        return 0 if steps < 0 else high
    return min(max(round(steps) + zero, 0), high)
