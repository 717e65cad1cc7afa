"""Operators that multiply each channel by a constant and add a constant: batch norms, learned gains and shifts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from acq.core.batchnorm import batch_norm_affine
from acq.network.constants import constant, device_of, shape_of
from acq.network.operators import (
    BATCH_NORM,
    DIFFERENCES,
    PRODUCTS,
    QUOTIENTS,
    RELU,
    REVERSED_DIFFERENCES,
    SUMS,
    is_float,
    operator_of,
)

# f(k x) = k f(x) for each channel and k > 0
HOMOGENEOUS = (RELU, "aten.leaky_relu.default", "aten.max_pool2d.default")
_FOUND = frozenset((BATCH_NORM, *PRODUCTS, *QUOTIENTS, *SUMS, *DIFFERENCES, *REVERSED_DIFFERENCES))


@dataclass(frozen=True)
class Affine:
    """A node as ``factor * source + shift``.

    Attributes:
        source: The node that it takes.
        factor: [] for one number per tensor, or [C].
        shift: As ``factor``.
        axis: The axis of the channels; None where both are one number per tensor.
    """

    source: fx.Node
    factor: Tensor
    shift: Tensor
    axis: int | None


def affine_of(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    """Read a node as an affine function with one constant per channel or per tensor.

    Args:
        graph: The traced network, for its constants.
        node: Any node.

    Returns:
        The function; None for any other operator, and where a constant varies along two axes.
    """
    name = operator_of(node) if node.op == "call_function" else ""
    if name not in _FOUND:
        return None
    return _batch_norm(graph, node) if name == BATCH_NORM else _arithmetic(graph, node, name)


def composed(constants: Iterable[Affine]) -> tuple[Tensor, Tensor]:
    """Factor and shift of functions that are applied one after the other."""
    factor, shift = torch.ones(()), torch.zeros(())
    for each in constants:
        factor, shift = each.factor * factor, each.factor * shift + each.shift
    return factor, shift


def folded(weight: Tensor, bias: Tensor | None, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [K, ...] and bias [K] of a layer whose output is multiplied by ``factor`` and moved by ``shift``.

    Args:
        weight: The layer's weight.
        bias: Its bias, if it has one.
        factor: [K] or [].
        shift: As ``factor``.
    """
    whole = factor.expand(len(weight))
    moved = shift.expand(len(weight)).clone()
    return weight * whole.view(-1, *(1,) * (weight.dim() - 1)), moved if bias is None else moved + factor * bias


def sizes(factor: Tensor) -> Tensor:
    """Absolute values, with 1 in place of 0."""
    return torch.where(factor == 0, 1.0, factor.abs())


def _batch_norm(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    source, *given, training, _, epsilon, _ = node.args
    weight, bias, mean, var = (constant(graph, value) for value in given)
    computed = any(isinstance(value, fx.Node) and constant(graph, value) is None for value in given)
    if training or computed or mean is None or var is None:
        return None
    assert isinstance(source, fx.Node)
    assert isinstance(epsilon, float)
    factor, shift = batch_norm_affine(weight, bias, mean, var, epsilon)
    return Affine(source, factor, shift, 1)


def _arithmetic(graph: fx.GraphModule, node: fx.Node, name: str) -> Affine | None:
    left, right = node.args[:2]
    numbers = [_number(graph, node, value) for value in (left, right)]
    if (numbers[0] is None) == (numbers[1] is None):
        return None
    first = numbers[0] is None  # the source is the first operand
    source, found = (left, numbers[1]) if first else (right, numbers[0])
    if not isinstance(source, fx.Node) or found is None or shape_of(source) != shape_of(node) or not is_float(source):
        return None
    value, axis = found
    alpha: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if name in PRODUCTS:
        return Affine(source, value, zero, axis)
    if name in QUOTIENTS:
        return Affine(source, 1 / value, zero, axis) if first else None
    # a + sign * b for addition and subtraction, sign * a + b for the reversed subtraction
    signs = (1, alpha) if name in SUMS else (1, -alpha) if name in DIFFERENCES else (-alpha, 1)
    of_source, of_value = signs if first else signs[::-1]
    return Affine(source, of_source * one, of_value * value, axis)


def _number(graph: fx.GraphModule, node: fx.Node, value: Any) -> tuple[Tensor, int | None] | None:
    """An operand as a constant [] or [C], and the axis of its channels in ``node``; None for any other operand."""
    if isinstance(value, int | float):
        return torch.tensor(float(value), device=device_of(graph)), None
    tensor = constant(graph, value)
    rank = len(shape_of(node))
    if tensor is None or tensor.dim() > rank:
        return None
    sizes = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    axes = [axis for axis, size in enumerate(sizes) if size != 1]
    if len(axes) > 1 or 0 in axes or tensor.numel() == 0:
        return None
    if not axes:
        return tensor.detach().float().reshape(()), None
    return tensor.detach().float().reshape(-1), axes[0]
