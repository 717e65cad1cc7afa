"""Functions of single values with parameters, softmax, and those without."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import Node, only, reads
from acq.zoo.onnx.values import Host, UnreadError, Value, is_host, number

_SINGLE_AXIS = 13  # the version from which softmax is along one axis and not along all behind it
_HUGE = 1e30  # bounds beyond this are none
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf, "Sqrt": torch.sqrt,
    "Exp": torch.exp, "Log": torch.log, "Neg": torch.neg, "Abs": torch.abs, "HardSwish": F.hardswish,
    "Softplus": F.softplus, "Softsign": F.softsign, "Mish": F.mish, "Reciprocal": torch.reciprocal,
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin,
    "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "IsNaN": torch.isnan, "Not": torch.logical_not,
}  # fmt: skip


_OF_NUMBERS: dict[str, Callable[[Host], Host]] = {
    "Sqrt": np.sqrt, "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round,
    "Reciprocal": np.reciprocal, "Exp": np.exp, "Log": np.log, "Sign": np.sign, "Not": np.logical_not,
}  # fmt: skip


def _register(kind: str, function: Callable[[Tensor], Tensor]) -> None:
    @reads(kind, on_host=kind in _OF_NUMBERS)
    def run(_: Node, x: Value) -> Value:
        return _OF_NUMBERS[kind](x) if is_host(x) else function(x)


for _kind, _function in _PLAIN.items():
    _register(_kind, _function)


@reads("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Any:
    slope, middle = node.get("alpha", 0.2), node.get("beta", 0.5)
    if math.isclose(slope, 1 / 6, rel_tol=1e-4) and middle == 0.5:
        return F.hardsigmoid(x)
    return (x * slope + middle).clamp(0, 1)


@reads("LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Any:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@reads("PRelu", parameters=("", "weight"))
def _prelu(_: Node, x: Tensor, slope: Tensor) -> Any:
    sizes = [1] * (x.dim() - slope.dim()) + list(slope.shape)
    if len(sizes) == x.dim() > 1 and all(size == 1 for axis, size in enumerate(sizes) if axis != 1):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@reads("Elu")
def _elu(node: Node, x: Tensor) -> Any:
    return F.elu(x, node.get("alpha", 1.0))


@reads("Celu")
def _celu(node: Node, x: Tensor) -> Any:
    return F.celu(x, node.get("alpha", 1.0))


@reads("Selu")
def _selu(node: Node, x: Tensor) -> Any:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
    usual = math.isclose(alpha, 1.6732632, rel_tol=1e-5) and math.isclose(gamma, 1.0507010, rel_tol=1e-5)
    return F.selu(x) if usual else gamma * F.elu(x, alpha)


@reads("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Tensor) -> Any:
    return F.threshold(x, node.get("alpha", 1.0), 0.0)


@reads("Gelu")
def _gelu(node: Node, x: Tensor) -> Any:
    return F.gelu(x, approximate=node.get("approximate", "none"))


@reads("Swish")
def _swish(node: Node, x: Tensor) -> Any:
    slope = node.get("alpha", 1.0)
    return F.silu(x) if slope == 1 else x * torch.sigmoid(x * slope)


@reads("Clip")
def _clip(node: Node, x: Tensor, low: Value | None = None, high: Value | None = None) -> Any:
    least, most = (node.get(name) if bound is None else number(bound) for name, bound in (("min", low), ("max", high)))
    least = None if least is None or least < -_HUGE else least
    most = None if most is None or most > _HUGE else most
    if not x.is_floating_point():
        least, most = (None if bound is None else int(bound) for bound in (least, most))
    if least is None and most is None:
        return x
    if (least, most) == (0, None):
        return F.relu(x)
    return F.relu6(x) if (least, most) == (0, 6) else x.clamp(least, most)


@reads("Softmax", "LogSoftmax")
def _softmax(node: Node, x: Tensor) -> Any:
    function = F.softmax if node.kind == "Softmax" else F.log_softmax
    if node.opset >= _SINGLE_AXIS:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()
    if axis == x.dim() - 1 or all(size == 1 for size in x.shape[axis + 1 :]):
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


@reads("Dropout")
def _dropout(node: Node, x: Tensor, *_: Value | None) -> Any:
    only(node)
    return x


@reads("GridSample")
def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    if x.dim() != 4 or mode not in ("bilinear", "bicubic", "nearest"):
        raise UnreadError(f"has mode {mode!r} for {x.dim()} axes")
    return F.grid_sample(x, grid, mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0)))
