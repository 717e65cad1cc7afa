"""Rounding without training: choose each layer's integers so that its output is nearest to the float network's.

This is least squares in closed form, layer after layer, and takes seconds where training takes minutes. Rounding each
weight to the nearest integer loses most of the accuracy of depthwise convolutions; this method does not.

Shapes: G groups, D inputs per group (input channels per group times kernel size).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from acq.quantization.calibration import weight_scale
from acq.quantization.layers import QuantConv2d, QuantLayer
from acq.quantization.least_squares import best_rounding
from acq.quantization.student import Student, quantizers_off

_DAMPING = 0.2  # of the mean variance of a layer's inputs: synthetic images show some of the variance too rarely
_LEAST_VARIANCE = 1e-12  # so that constant inputs leave the Hessian positive definite
_MOST_DISTANCE = 0.45  # of a step, between a weight and its integer
# memory: entries of unfolded inputs, values of the widest tensor over all images, entries of a layer's Hessians
_UNFOLDED_VALUES, _TENSOR_VALUES, HESSIAN_VALUES = 1 << 24, 1 << 28, 1 << 25


@torch.no_grad()
def round_layers(student: Student, batches: Sequence[Tensor], *, most_hessian_values: int = HESSIAN_VALUES) -> None:
    """Round the weights of a calibrated student, layer by layer in order of execution.

    Let ``x`` be a layer's input in the float network and ``y`` its input behind the quantized layers. The rounded
    weight ``Q`` and the bias ``c`` minimise ``|(W x + b) - (Q y + c)|^2`` over all images and positions. The first step
    is in real numbers and compensates the error of the input (this project's definition). The second step rounds
    (``acq.quantization.least_squares``).

    Each weight stays as close to its old value as rounds to the chosen integer, so that training can undo large
    changes. A layer whose Hessian does not fit in memory stays as calibrated (above 5,792 inputs per group).

    Args:
        student: A calibrated student; weights, scales of weights and biases change.
        batches: Images [N, C, H, W].
        most_hessian_values: Entries of a layer's Hessians at most.

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("round_layers needs at least one batch of images")
    walk = _Walk(student, batches)
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        fits = isinstance(module, QuantLayer) and _hessian_values(module) <= most_hessian_values
        rounded = round_layer(module, walk.inputs(node)) if isinstance(module, QuantLayer) and fits else None
        with quantizers_off(student):
            walk.step(node, walk.float)
        if rounded is not None and isinstance(module, QuantLayer):
            rounded.apply(module)
        walk.step(node, walk.quantized)


def images_that_fit(student: Student, most_values: int = _TENSOR_VALUES) -> int:
    """The number of images that ``round_layers`` can take at once, at least 1.

    Args:
        student: The student.
        most_values: Values of its widest tensor over all images; the default is 1 GiB.
    """
    shapes: Iterable[tuple[int, ...]] = (node.meta["shape"] for node in student.graph.nodes)
    return max(1, most_values // max(math.prod(shape[1:]) for shape in shapes))


@dataclass(frozen=True)
class RoundedLayer:
    """The result of rounding one layer.

    Attributes:
        scale: Scales of the weights, one per output channel.
        weight: The weights.
        bias_shift: The change of the biases, one per output channel.
    """

    scale: Tensor
    weight: Tensor
    bias_shift: Tensor

    def apply(self, layer: QuantLayer) -> None:
        """Write the result into the layer."""
        layer.weight_quantizer.set_qparams(self.scale)
        layer.weight.copy_(self.weight)
        if layer.bias is not None:
            layer.bias.add_(self.bias_shift)


@torch.no_grad()
def round_layer(layer: QuantLayer, inputs: Iterable[tuple[Tensor, Tensor]]) -> RoundedLayer:
    """Round one layer; the layer itself does not change.

    Args:
        layer: A layer with calibrated scales.
        inputs: The layer's input per batch, in the float network and behind the quantized layers.
    """
    groups = layer.groups
    moments = _moments(layer, inputs)
    weight = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1).double()  # [G, K, D]
    hessian = _damped(moments.hessian)
    # argmin over real Q of |W x - Q y|^2, drawn towards W by the damping: W + W E[(x - y) y'] E[y y']^-1
    target = weight + torch.linalg.solve(hessian, weight @ moments.error, left=False)
    quantizer = layer.weight_quantizer
    start = weight_scale(target.reshape(layer.weight.shape).to(layer.weight), quantizer)
    scale, rounded = best_rounding(target, start.view(groups, -1, 1).double(), hessian, quantizer)
    residual = weight @ (moments.mean + moments.shift).unsqueeze(2) - rounded @ moments.mean.unsqueeze(2)
    reach = _MOST_DISTANCE * scale
    kept = rounded + torch.minimum(torch.maximum(weight - rounded, -reach), reach)
    return RoundedLayer(scale.reshape(-1).to(start), kept.view_as(layer.weight), residual.reshape(-1).to(start))


def unfold_inputs(layer: QuantConv2d, x: Tensor) -> Tensor:
    """The inputs that a convolution multiplies: [n, C, H, W] -> [G, D, n * positions]."""
    above, left, below, right = layer.pads
    padded = F.pad(x, (left, right, above, below))
    kernel, stride = tuple(layer.weight.shape[2:]), layer.stride
    if kernel == (1, 1):  # F.unfold copies each value once more
        columns = padded[:, :, :: stride[0], :: stride[1]].flatten(2)  # [n, G * D, L]
    else:
        columns = F.unfold(padded, kernel, layer.dilation, 0, stride)
    return columns.view(len(columns), layer.groups, -1, columns.shape[2]).permute(1, 2, 0, 3).flatten(2)


class _Walk(fx.Interpreter):
    """Runs the student's graph node by node on all batches, in floating point and quantized."""

    def __init__(self, student: Student, batches: Sequence[Tensor]) -> None:
        super().__init__(student, graph=student.graph)
        self.batches = batches
        self.float: list[dict[fx.Node, Tensor]] = [{} for _ in batches]
        self.quantized: list[dict[fx.Node, Tensor]] = [{} for _ in batches]

    def step(self, node: fx.Node, values: list[dict[fx.Node, Tensor]]) -> None:
        """Run a node on every batch: take inputs from ``values``, add the output and drop unused values."""
        for images, known in zip(self.batches, values, strict=True):
            self.env = known
            self.args_iter = iter((images,))
            known[node] = self.run_node(node)
            for unused in self.user_to_last_uses.get(node, []):
                del known[unused]

    def inputs(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """The input of a layer per batch: in the float network, and behind the quantized layers."""
        (source,) = node.all_input_nodes
        for floats, quantized in zip(self.float, self.quantized, strict=True):
            yield floats[source], quantized[source]


@dataclass(frozen=True)
class _Moments:
    """Moments of a layer's inputs per group, with x the float input and y the quantized one.

    ``mean`` [G, D] is the mean of y and ``shift`` [G, D] the mean of x - y. ``hessian`` [G, D, D] is the covariance of
    y, and ``error`` [G, D, D] that of x - y with y. Without a bias, which would compensate means, both are second
    moments.
    """

    mean: Tensor
    shift: Tensor
    hessian: Tensor
    error: Tensor


def _hessian_values(layer: QuantLayer) -> int:
    inputs: int = layer.weight[0].numel()
    return layer.groups * inputs**2


def _damped(hessian: Tensor) -> Tensor:
    level = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(_LEAST_VARIANCE)
    damped = hessian.clone()
    damped.diagonal(dim1=1, dim2=2).add_(_DAMPING * level)
    return damped


def _moments(layer: QuantLayer, inputs: Iterable[tuple[Tensor, Tensor]]) -> _Moments:
    groups, size = layer.groups, layer.weight[0].numel()
    mean, shift = (layer.weight.new_zeros(groups, size, dtype=torch.float64) for _ in range(2))
    hessian, error = (mean.new_zeros(groups, size, size) for _ in range(2))
    count, origin = 0, None
    for x, y in inputs:
        for floats, quantized in _columns(layer, x, y):
            if origin is None:  # near the mean, so that no digits cancel where inputs hardly vary
                origin = quantized.mean(2, keepdim=True) * (layer.bias is not None)
            difference, centred = floats - quantized, quantized - origin
            count += quantized.shape[2]
            mean += centred.sum(2)
            shift += difference.sum(2)
            hessian += centred @ centred.mT
            error += difference @ centred.mT
    assert origin is not None
    mean, shift, hessian, error = mean / count, shift / count, hessian / count, error / count
    if layer.bias is not None:
        hessian -= mean.unsqueeze(2) * mean.unsqueeze(1)
        error -= shift.unsqueeze(2) * mean.unsqueeze(1)
    return _Moments(mean + origin.squeeze(2), shift, hessian, error)


def _columns(layer: QuantLayer, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs that the layer multiplies, a few images at a time: [G, D, n] of both."""
    if not isinstance(layer, QuantConv2d):
        yield x.reshape(1, -1, x.shape[-1]).mT, y.reshape(1, -1, y.shape[-1]).mT
        return
    values = y[0].numel() * layer.weight[0, 0].numel()
    images = max(1, _UNFOLDED_VALUES // values)
    for floats, quantized in zip(x.split(images), y.split(images), strict=True):  # type: ignore[no-untyped-call]
        yield unfold_inputs(layer, floats), unfold_inputs(layer, quantized)
