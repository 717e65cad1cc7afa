"""Layers with weights, and products of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.operators.padding import padded, pads_of, window
from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import UnreadError, plain

_WEIGHTS = ("", "weight", "bias")
_CONVOLUTIONS: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@reads("Conv", parameters=_WEIGHTS)
def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    axes, kernel = _geometry(x, weight)
    before, behind = pads_of(node, x.shape[2:], kernel)
    if before != behind:
        x, before = padded(x, before, behind), [0] * axes
    strides, dilations = window(node, "strides", axes), window(node, "dilations", axes)
    return _CONVOLUTIONS[axes](x, weight, bias, strides, before, dilations, node.get("group", 1))


@reads("ConvTranspose", parameters=_WEIGHTS)
def _transposed_convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    axes, kernel = _geometry(x, weight)
    strides, dilations = window(node, "strides", axes), window(node, "dilations", axes)
    more = list(node.get("output_padding") or [0] * axes)
    sizes = plain(x.shape[2:])
    whole = [
        (size - 1) * stride + (k - 1) * dilation + 1 + extra
        for size, stride, k, dilation, extra in zip(sizes, strides, kernel, dilations, more, strict=True)
    ]
    before, behind = _cropped(node, sizes, strides, whole)
    common = [min(pair) for pair in zip(before, behind, strict=True)]
    if min(common) < 0:
        raise UnreadError(f"makes an output that is larger than {whole}")
    y = _TRANSPOSED[axes](x, weight, bias, strides, common, more, node.get("group", 1), dilations)
    for axis, (first, last, both) in enumerate(zip(before, behind, common, strict=True), 2):
        if first != last:
            y = y.narrow(axis, first - both, y.shape[axis] - first - last + 2 * both)
    return y


def _cropped(node: Node, sizes: list[int], strides: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off before and behind each axis of a transposed convolution."""
    mode, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    axes = len(sizes)
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = list(node.get("pads") or [0] * 2 * axes)
        return pads[:axes], pads[axes:]
    if wanted is None:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    total = [size - left for size, left in zip(whole, list(wanted)[-axes:], strict=True)]
    less = [size // 2 for size in total]
    more = [size - half for size, half in zip(total, less, strict=True)]
    return (more, less) if mode in ("SAME_LOWER", "NOTSET") else (less, more)


def _geometry(x: Tensor, weight: Tensor) -> tuple[int, list[int]]:
    axes = weight.dim() - 2
    if axes not in _CONVOLUTIONS or x.dim() != weight.dim():
        raise UnreadError(f"takes {x.dim()} axes and weights of {weight.dim()} axes")
    return axes, list(weight.shape[2:])


@reads("Gemm", parameters=_WEIGHTS)
def _gemm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    x = x.t() if node.get("transA", 0) else x
    weight = weight if node.get("transB", 0) else weight.t()
    factor, share = node.get("alpha", 1.0), node.get("beta", 1.0)
    weight = weight if factor == 1 else weight * factor
    bias = bias if bias is None or share == 1 else bias * share
    if bias is None or bias.numel() == weight.shape[0] == bias.shape[-1:].numel():
        return F.linear(x, weight, None if bias is None else bias.reshape(-1))
    return F.linear(x, weight) + bias


@reads("MatMul")
def _product(_: Node, x: Tensor, y: Tensor) -> Any:
    return torch.matmul(x, y)


@reads("Einsum")
def _einsum(node: Node, *operands: Tensor) -> Any:
    return torch.einsum(node.get("equation", ""), *operands)
