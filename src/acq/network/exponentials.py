"""Sigmoids, SiLUs and softmaxes that a network computes of exponentials, put back as one operator each."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from acq.network.constants import shape_of
from acq.network.operators import PRODUCTS, operator_of
from acq.network.readings import Product, Reader, Whole, close, is_number, same_shape

aten = torch.ops.aten
_ONE_MORE = {0: 1.0, 1: 1.0}  # of an exponential
_PAIR = 2


def exponential(reader: Reader, node: fx.Node) -> Whole | None:
    """The sigmoid, SiLU or softmax that a node is; None for anything else.

    Args:
        reader: Of the graph.
        node: A quotient, or a product with a reciprocal.
    """
    found = _quotient(reader, node)
    if found is None:
        return None
    whole = _sigmoid(reader, *found) or _softmax(*found)
    return whole if whole is not None and same_shape(whole.args[0], node) else None


def _quotient(reader: Reader, node: fx.Node) -> tuple[fx.Node | float, fx.Node] | None:
    """What is divided, and the node that divides it."""
    name = operator_of(node)
    if name == "aten.div.Tensor" and not node.kwargs:
        above, below = node.args
        number = reader.number(above)
        return None if reader.number(below) is not None else (_node(above) if number is None else number, _node(below))
    product = reader.product(node) if name in PRODUCTS else Product(1.0, (node,))
    inverse = [factor for factor in product.factors if operator_of(factor) == "aten.reciprocal.default"]
    others = [factor for factor in product.factors if factor not in inverse]
    if len(inverse) != 1 or len(others) > 1 or (others and not is_number(product.number, 1)):
        return None
    return others[0] if others else product.number, _node(inverse[0].args[0])


def _sigmoid(reader: Reader, above: fx.Node | float, below: fx.Node) -> Whole | None:
    """``1 / (1 + exp(-x))`` or ``exp(x) / (1 + exp(x))``; also ``x / (1 + exp(-x))``, which is a SiLU."""
    power = reader.base(below)
    terms = None if power.target is not aten.exp.default else reader.polynomial(below, power)
    if terms is None or not close(terms, _ONE_MORE):
        return None
    exponent = _node(power.args[0])
    if above is power:
        return Whole(aten.sigmoid.default, (exponent,), {})
    negated = reader.product(exponent, 1)  # the sign alone: x itself may be a product
    if not is_number(negated.number, -1) or len(negated.factors) != 1:
        return None
    if isinstance(above, fx.Node):
        return Whole(aten.silu.default, (above,), {}) if negated.factors == (above,) else None
    return Whole(aten.sigmoid.default, negated.factors, {}) if is_number(above, 1) else None


def _softmax(above: fx.Node | float, below: fx.Node) -> Whole | None:
    """``exp(x) / sum(exp(x))`` over one axis, where x may be less its greatest value."""
    if not isinstance(above, fx.Node) or above.target is not aten.exp.default:
        return None
    if below.target is not aten.sum.dim_IntList or below.args[0] is not above:
        return None
    rank, exponent = len(shape_of(above)), _node(above.args[0])
    axes: Any = (*below.args, None)[1]
    keeps = (*below.args, False, False)[2] or below.kwargs.get("keepdim", False)
    if not keeps or not isinstance(axes, list | tuple) or len(axes) != 1:
        return None
    axis = axes[0] % rank
    return Whole(aten.softmax.int, (_before_shift(exponent, axis), axis), {})


def _before_shift(node: fx.Node, axis: int) -> fx.Node:
    """What a node was before a greatest value was taken off that does not vary along an axis: it changes no softmax."""
    if operator_of(node) != "aten.sub.Tensor" or len(node.args) != _PAIR or node.kwargs:
        return node
    source, given = node.args
    if not isinstance(given, fx.Node):
        return node
    if given.target is operator.getitem and given.args[1] == 0:
        given = _node(given.args[0])
    if given.target not in (aten.amax.default, aten.max.dim, aten.max.default) or given.args[0] is not source:
        return node
    axes: Any = (*given.args, None)[1]
    if axes is None or axes == []:
        return _node(source)  # the greatest value of all
    over = [place % len(shape_of(node)) for place in (axes if isinstance(axes, list | tuple) else [axes])]
    keeps = (*given.args, False, False)[2] or given.kwargs.get("keepdim", False)
    return _node(source) if keeps and axis in over else node


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value
