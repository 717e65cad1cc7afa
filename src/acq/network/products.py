"""Products of values and a constant matrix, put as the linear layer that each of them is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from acq.network.constants import constant, replace_constant, shape_of

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)
_MATRIX = 2  # axes


def products_as_layers(graph: fx.GraphModule) -> None:
    """Replace ``x @ W`` and ``W @ x`` by linear layers, and ``b + x @ W`` as one operator, too.

    Args:
        graph: A decomposed graph whose constants are folded; it changes.
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.addmm.default:
            _from_sum(graph, node)
        elif node.target in _PRODUCTS:
            left, right = node.args
            if (matrix := _matrix(graph, right)) is not None and constant(graph, left) is None:
                _set(graph, node, (left, right), matrix.t())
            elif (matrix := _matrix(graph, left)) is not None and len(shape_of(right)) >= _MATRIX:
                _turned(graph, node, left, right, matrix)


def _set(graph: fx.GraphModule, node: fx.Node, args: tuple[Any, ...], weight: Tensor) -> None:
    """Make a node a linear layer with that weight [K, C]."""
    node.target, node.args = aten.linear.default, args
    replace_constant(graph, node, 1, weight.contiguous())


def _turned(graph: fx.GraphModule, node: fx.Node, matrix: Any, source: Any, weight: Tensor) -> None:
    """A layer over the axis before the last: the last two axes change places before and behind it."""
    value: Any = node.meta["val"]
    with graph.graph.inserting_before(node):
        turned = graph.graph.call_function(aten.transpose.int, (source, -1, -2))
        layer = graph.graph.call_function(aten.linear.default, (turned, matrix))
    turned.meta = {**node.meta, "val": source.meta["val"].transpose(-1, -2)}
    layer.meta = {**node.meta, "val": value.transpose(-1, -2)}
    node.target, node.args = aten.transpose.int, (layer, -1, -2)
    _set(graph, layer, (turned, matrix), weight)


def _from_sum(graph: fx.GraphModule, node: fx.Node) -> None:
    bias, x, right = node.args
    matrix, added = _matrix(graph, right), constant(graph, bias)
    if node.kwargs or matrix is None or added is None or added.shape != matrix.shape[1:]:
        return
    _set(graph, node, (x, right, bias), matrix.t())


def _matrix(graph: fx.GraphModule, value: object) -> Tensor | None:
    """A constant matrix, perhaps with axes of one value in front; None for anything else."""
    found = constant(graph, value)
    if found is None or not found.is_floating_point() or found.dim() < _MATRIX:
        return None
    return found.reshape(found.shape[-2:]) if found.shape[:-2].numel() == 1 else None
