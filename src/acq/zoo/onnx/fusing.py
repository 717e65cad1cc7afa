"""Nodes that are one layer of a network, joined: a product or a convolution and the sum behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.registry import Node

_MATRIX = 2  # axes
_TO_FRONT = [0, 3, 1, 2]  # how an image's channels come in front


def fused(graph: Graph) -> Graph:
    """Join each layer with the constant that is added to it.

    A product with a constant matrix becomes the operator ``Linear``, with its weight as torch stores it.
    """
    constants, nodes = dict(graph.constants), list(graph.nodes)
    readers = Counter(name for node in nodes for name in node.inputs)
    readers.update(graph.exits)
    made = {output: node for node in nodes for output in node.outputs}
    gone: set[int] = set()
    replaced: dict[int, Node] = {}
    for node in nodes:
        if node.kind == "MatMul":
            layer = _linear(node, constants)
            if layer is not None:
                replaced[id(node)] = layer
    for node in nodes:
        if node.kind != "Add":
            continue
        source, added = _operands(node, constants)
        layer = made.get(source)
        if layer is None or readers[source] > 1 or added is None:
            continue
        known = replaced.get(id(layer), layer)
        bias = _bias(known, constants[added], constants)
        if bias is not None:
            name = f"{node.outputs[0]}.bias"
            constants[name] = bias
            # the sum stays where it is, because the layer's weight may be there already and its readers come later
            replaced[id(layer)] = replace(known, inputs=(*known.inputs[:2], name), outputs=node.outputs)
            gone.add(id(node))
    kept = tuple(replaced.get(id(node), node) for node in nodes if id(node) not in gone)
    return replace(graph, nodes=kept, constants=constants)


def without_turn(graph: Graph) -> Graph | None:
    """The graph for images with their channels in front, if all that it does first is to bring them there."""
    first = [node for node in graph.nodes if graph.entry in node.inputs]
    turns = [node.kind == "Transpose" and list(node.get("perm") or []) == _TO_FRONT for node in first]
    if not first or not all(turns) or graph.entry in graph.exits:
        return None
    names = {output: graph.entry for node in first for output in node.outputs}
    if any(name in graph.exits for name in names):
        return None
    nodes = (
        replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        for node in graph.nodes
        if graph.entry not in node.inputs
    )
    return replace(graph, nodes=tuple(nodes))


def _linear(node: Node, constants: dict[str, NDArray[Any]]) -> Node | None:
    weight = constants.get(node.inputs[1])
    if weight is None or weight.ndim != _MATRIX or weight.dtype.kind != "f" or node.inputs[0] in constants:
        return None
    name = f"{node.inputs[1]}.transposed"
    constants.setdefault(name, np.ascontiguousarray(weight.T))
    return replace(node, kind="Linear", inputs=(node.inputs[0], name))


def _operands(node: Node, constants: Mapping[str, NDArray[Any]]) -> tuple[str, str | None]:
    """The names of what a sum adds to, and of the constant that it adds."""
    first, second = node.inputs
    if second in constants:
        return first, second
    return (second, first) if first in constants else ("", None)


def _bias(layer: Node, added: NDArray[Any], constants: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """A layer's bias with a constant of its channels added; None where the constant is another one."""
    if layer.kind not in ("Conv", "Linear"):
        return None
    old = layer.inputs[2] if len(layer.inputs) > 2 else ""
    weight = constants.get(layer.inputs[1])
    if weight is None or added.dtype.kind != "f" or (old and old not in constants):
        return None
    if layer.kind == "Linear":
        channels, fits = weight.shape[0], added.shape[-1:] == (weight.shape[0],) and added.size == weight.shape[0]
    else:
        channels = weight.shape[0]
        fits = added.ndim >= weight.ndim - 1 and added.shape[1 - weight.ndim :] == (channels, *(1,) * (weight.ndim - 2))
        fits = fits and added.size == channels and added.ndim <= weight.ndim
    if not fits:
        return None
    bias = added.reshape(channels)
    return bias + constants[old].reshape(channels) if old else bias
