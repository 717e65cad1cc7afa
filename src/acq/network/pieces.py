"""Functions and norms that a network computes in pieces, put back as the one operator that each of them is.

Exporters for old versions of ONNX, and users' own modules, write them so. Engines and the planner know the whole
operators. The definitions are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from acq.network.constants import constant, constant_before, shape_of
from acq.network.exponentials import exponential
from acq.network.operators import SUMS, operator_of, sole_user
from acq.network.readings import Product, Reader, Whole, close, is_number, same_shape

aten = torch.ops.aten
_SIXTH = {0: 0.5, 1: 1 / 6}  # the line of a hard sigmoid
_ERF = {1: math.sqrt(0.5)}
_TANH = {1: math.sqrt(2 / math.pi), 3: 0.044715 * math.sqrt(2 / math.pi)}
_DIFFERENCE, _QUOTIENT, _PRODUCT = "aten.sub.Tensor", "aten.div.Tensor", "aten.mul.Tensor"
_ROOT, _ONE_BY_ROOT, _ONE_BY = "aten.sqrt.default", "aten.rsqrt.default", "aten.reciprocal.default"
_PAIR = 2


def join_pieces(graph: fx.GraphModule) -> None:
    """Replace what is in pieces by whole operators, with the same values up to the digits of the constants.

    Args:
        graph: A decomposed graph whose constants are folded; it changes.
    """
    reader = Reader(graph)
    _join(graph, lambda node: exponential(reader, node))  # before a SiLU, which may have a sigmoid in pieces
    _join(graph, lambda node: _activation(reader, node) or _layer_norm(reader, node))
    for node in list(graph.graph.nodes):
        if node.target is aten.layer_norm.default:
            _take_affine(graph, node)


def _join(graph: fx.GraphModule, whole_of: Callable[[fx.Node], Whole | None]) -> None:
    """Replace nodes by the whole operators that they are."""
    gone: set[fx.Node] = set()
    for node in reversed(list(graph.graph.nodes)):  # a hard swish comes before the hard sigmoid in it
        if node in gone or node.op != "call_function" or not node.users:
            continue
        whole = whole_of(node)
        if whole is not None:
            with graph.graph.inserting_before(node):
                made = graph.graph.call_function(whole.target, whole.args, whole.kwargs)
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            gone |= _erase(graph, node)


def _erase(graph: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Remove a node and all that nothing reads without it."""
    gone: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in gone or current.users or current.op not in ("call_function", "get_attr"):
            continue
        waiting += current.all_input_nodes
        graph.graph.erase_node(current)
        gone.add(current)
    return gone


def _activation(reader: Reader, node: fx.Node) -> Whole | None:
    product = reader.product(node)
    if len(product.factors) == 1:
        source = _hard_sigmoid(reader, product, None)
        is_one = node.target is aten.hardsigmoid.default or source is None or not same_shape(source, node)
        return None if is_one else Whole(aten.hardsigmoid.default, (source,), {})
    if len(product.factors) != _PAIR:
        return None
    for x, gate in (product.factors, product.factors[::-1]):
        if same_shape(x, node) and same_shape(gate, node):
            for function in _GATED:
                found = function(reader, product.number, x, gate)
                if found is not None:
                    return found
    return None


def _hard_sigmoid(reader: Reader, product: Product, x: fx.Node | None) -> fx.Node | None:
    """What a hard sigmoid takes, in ``number * clip(line(x), low, high)``; None for anything else."""
    (clipped,), number = product.factors, product.number
    bounded = reader.bounded(clipped)
    if bounded is None:
        return None
    source = reader.base(bounded.source) if x is None else x
    line = reader.polynomial(bounded.source, source)
    if line is None or not close({power: number * value for power, value in line.items()}, _SIXTH):
        return None
    ends = sorted((number * bounded.low, number * bounded.high))
    return source if math.isfinite(sum(ends)) and is_number(ends[0], 0) and is_number(ends[1], 1) else None


def _hard_swish(reader: Reader, number: float, x: fx.Node, gate: fx.Node) -> Whole | None:
    whole = gate.target is aten.hardsigmoid.default and gate.args[0] is x and is_number(number, 1)
    found = whole or _hard_sigmoid(reader, Product(number, (gate,)), x) is x
    return Whole(aten.hardswish.default, (x,), {}) if found else None


def _silu(_: Reader, number: float, x: fx.Node, gate: fx.Node) -> Whole | None:
    found = gate.target is aten.sigmoid.default and gate.args[0] is x and is_number(number, 1)
    return Whole(aten.silu.default, (x,), {}) if found else None


def _mish(_: Reader, number: float, x: fx.Node, gate: fx.Node) -> Whole | None:
    inner = gate.args[0] if gate.target is aten.tanh.default else None
    found = isinstance(inner, fx.Node) and inner.target is aten.softplus.default and inner.args == (x,)
    return Whole(aten.mish.default, (x,), {}) if found and is_number(number, 1) else None


def _gelu(reader: Reader, number: float, x: fx.Node, gate: fx.Node) -> Whole | None:
    """``x / 2`` times one more than an error function, or than the tangent that comes close to it."""
    half, inner = _inner(reader, gate)
    if half is None or inner is None or not isinstance(inner.args[0], fx.Node):
        return None
    taken = reader.polynomial(inner.args[0], x)
    if taken is None or not close({power: number * value for power, value in half.items()}, {0: 0.5, 1: 0.5}):
        return None
    if inner.target is aten.erf.default and close(taken, _ERF):
        return Whole(aten.gelu.default, (x,), {})
    if inner.target is aten.tanh.default and close(taken, _TANH):
        return Whole(aten.gelu.default, (x,), {"approximate": "tanh"})
    return None


def _inner(reader: Reader, gate: fx.Node) -> tuple[dict[int, float] | None, fx.Node | None]:
    """A line of an error function or a hyperbolic tangent, and that function."""
    base = reader.base(gate)
    if base.op != "call_function" or base.target not in (aten.erf.default, aten.tanh.default):
        return None, None
    return reader.polynomial(gate, base), base


_GATED: tuple[Callable[[Reader, float, fx.Node, fx.Node], Whole | None], ...] = (_hard_swish, _silu, _mish, _gelu)


def _layer_norm(reader: Reader, node: fx.Node) -> Whole | None:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps)`` over the last axes."""
    pair = _difference_and_root(node)
    if pair is None:
        return None
    difference, root = pair
    centred, inner = _centred(difference), cast(fx.Node, root.args[0])
    if centred is None or not same_shape(centred[0], node):
        return None
    x, axes = centred
    if operator_of(inner) not in SUMS or len(inner.args) != _PAIR or inner.kwargs:
        return None
    numbers = [reader.number(value) for value in inner.args]
    if (numbers[0] is None) == (numbers[1] is None):
        return None
    variance, epsilon = (inner.args[0], numbers[1]) if numbers[0] is None else (inner.args[1], numbers[0])
    if epsilon is None or epsilon <= 0 or not isinstance(variance, fx.Node):
        return None
    if not _is_variance(reader, variance, x, difference, axes):
        return None
    shape = list(shape_of(x)[min(axes) :])
    return Whole(aten.layer_norm.default, (x, shape, None, None, epsilon), {})


def _difference_and_root(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two operands of a quotient by a square root, however it is written."""
    name = operator_of(node)
    if name not in (_QUOTIENT, _PRODUCT) or len(node.args) != _PAIR:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    if name == _QUOTIENT:
        return (left, right) if operator_of(right) == _ROOT else None
    for difference, factor in ((left, right), (right, left)):
        if operator_of(factor) == _ONE_BY_ROOT:
            return difference, factor
        root = factor.args[0] if operator_of(factor) == _ONE_BY else None
        if isinstance(root, fx.Node) and operator_of(root) == _ROOT:
            return difference, root
    return None


def _centred(node: fx.Node) -> tuple[fx.Node, tuple[int, ...]] | None:
    """The node of which this one is the difference from its mean, and the last axes of that mean."""
    if operator_of(node) != _DIFFERENCE or len(node.args) != _PAIR or node.kwargs:
        return None
    x, mean = node.args
    if not isinstance(x, fx.Node) or not isinstance(mean, fx.Node):
        return None
    axes = _mean_axes(mean, x)
    return None if axes is None else (x, axes)


def _mean_axes(mean: fx.Node, x: fx.Node) -> tuple[int, ...] | None:
    """The last axes of x over which a node is its mean; None where it is another one."""
    if mean.target is not aten.mean.dim or mean.args[0] is not x:
        return None
    given, keeps = (*mean.args, None, False)[1:3]
    return _last_axes(given, bool(keeps) or bool(mean.kwargs.get("keepdim")), len(shape_of(x)))


def _last_axes(given: Any, keeps: bool, rank: int) -> tuple[int, ...] | None:
    axes = tuple(sorted(axis % rank for axis in given)) if isinstance(given, list | tuple) else ()
    is_last = bool(axes) and axes == tuple(range(axes[0], rank)) and axes[0] > 0
    return axes if keeps and is_last else None


def _is_variance(reader: Reader, node: fx.Node, x: fx.Node, difference: fx.Node, axes: tuple[int, ...]) -> bool:
    rank = len(shape_of(x))
    if node.target is aten.var.correction and node.args[0] is x:
        given = (*node.args, None)[1] or node.kwargs.get("dim")
        biased = bool(node.kwargs.get("correction", 1) == 0)
        return biased and _last_axes(given, bool(node.kwargs.get("keepdim")), rank) == axes
    squares = node.args[0] if node.target is aten.mean.dim else None
    if not isinstance(squares, fx.Node) or _mean_axes(node, squares) != axes:
        return False
    return reader.polynomial(squares, difference) == {2: 1.0} or _is_square_of_same(reader, squares, x, axes)


def _is_square_of_same(reader: Reader, squares: fx.Node, x: fx.Node, axes: tuple[int, ...]) -> bool:
    """Whether a node is the square of another difference of the same values, which some exporters compute twice."""
    source = squares.args[0] if squares.args else None
    if not isinstance(source, fx.Node) or _centred(source) != (x, axes):
        return False
    return reader.polynomial(squares, source) == {2: 1.0}


def _take_affine(graph: fx.GraphModule, norm: fx.Node) -> None:
    """Give a layer norm without gains the constants that its values are multiplied by, and that are added."""
    shape: Any = norm.args[1]
    for place, name in ((2, _PRODUCT), (3, SUMS[0])):
        args = [*norm.args, None, None][:4] if len(norm.args) < 4 else list(norm.args)
        user = sole_user(norm)
        if args[place] is not None or user is None or operator_of(user) != name or len(user.args) != _PAIR:
            continue
        other = user.args[1] if user.args[0] is norm else user.args[0]
        value = constant(graph, other)
        if value is None or not isinstance(other, fx.Node) or user.kwargs:
            continue
        front = value.dim() - len(shape)
        if front < 0 or list(value.shape) != [1] * front + list(shape):
            continue
        args[place] = constant_before(graph, norm, other, value.reshape(shape))
        norm.args = tuple(args)
        user.replace_all_uses_with(norm)
        graph.graph.erase_node(user)
