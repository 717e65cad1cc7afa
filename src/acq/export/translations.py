"""Operators that ``torch.onnx`` writes in a form whose shapes the checker cannot infer, in forms where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset21 as op

aten = torch.ops.aten


def _native_group_norm(
    x: Any, weight: Any, bias: Any, _images: Any, _channels: Any, _cells: Any, groups: int, epsilon: float
) -> Sequence[Any]:
    """Mean and deviation, which nothing reads in eval mode, are not returned."""
    return _group_norm(x, groups, weight, bias, epsilon), None, None


def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, epsilon: float = 1e-5, _cudnn: bool = True
) -> Any:
    """Normalise each group like an instance, then scale and shift channels."""
    rows: Any = op.Constant(value_ints=[0, groups, -1])
    column: Any = op.Constant(value_ints=[x.shape[1], *[1] * (len(x.shape) - 2)])
    ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
    y: Any = op.InstanceNormalization(op.Reshape(x, rows), ones, zeros, epsilon=epsilon)
    y = op.Reshape(y, op.Shape(x))
    if weight is not None:
        y = op.Mul(y, op.Reshape(weight, column))
    return y if bias is None else op.Add(y, op.Reshape(bias, column))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.group_norm.default: _group_norm,
    aten.native_group_norm.default: _native_group_norm,
}
