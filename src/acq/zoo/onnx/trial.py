"""One pass through a graph without values: whether it can be computed, in how much memory, for how many images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from acq.errors import RequestError
from acq.files.limits import VALUES_AT_ONCE, images_at_once
from acq.zoo.onnx.batches import TRIAL, Freed, axis_of_images, freed
from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.refusal import refused
from acq.zoo.onnx.registry import OPERATORS, Node, constant_value
from acq.zoo.onnx.values import UnreadError, Value

_META = torch.device("meta")


def tried(graph: Graph, images: Tensor, fixed: int | None) -> dict[Node, Freed]:
    """Run a graph once without values.

    Args:
        graph: The graph.
        images: Its input for ``TRIAL`` images, on the device ``meta``.
        fixed: The number of images that the graph is made for, if it is made for one.

    Returns:
        What changes in nodes where there are other numbers of images.

    Raises:
        RequestError: A node cannot be computed for such images, or takes too much memory.
    """
    several = images_at_once([size for size in images.shape if size != TRIAL])
    values: dict[str, Any] = {graph.entry: images}
    changes: dict[Node, Freed] = {}
    inside: set[str] = set()  # values that count images inside other places of their axis
    with torch.no_grad(), torch.device(_META):
        for node in graph.nodes:
            with refused(node):
                inputs = [_input(graph, node, place, values) for place in range(len(node.inputs))]
                change = None if fixed is None else freed(node, inputs, fixed, not inside.isdisjoint(node.inputs[:1]))
                if change is not None and fixed is not None:
                    changes[node] = change
                    inputs = change.applied(node, inputs, TRIAL, fixed)
                found = OPERATORS[node.kind](node, inputs)
                _require_memory(found, several)
            values.update(zip(node.outputs, found, strict=False))
            if (change is not None and change.inside) or _stays_inside(node, values, inside):
                inside.update(node.outputs)
    for name in graph.exits:
        if not isinstance(values.get(name), Tensor):
            raise RequestError(f"the output {name!r} does not depend on the images; leave it out of --outputs")
    return changes


def values_without_images(graph: Graph, images: Tensor) -> dict[str, Any]:
    """What a graph computes in a pass without values: numbers of the host, and tensors on the device ``meta``.

    Args:
        graph: The graph.
        images: Its input, on the device ``meta``.

    Raises:
        RequestError: A node cannot be computed for such images.
    """
    values: dict[str, Any] = {graph.entry: images}
    with torch.no_grad(), torch.device(_META):
        for node in graph.nodes:
            with refused(node):
                inputs = [_input(graph, node, place, values) for place in range(len(node.inputs))]
                values.update(zip(node.outputs, OPERATORS[node.kind](node, inputs), strict=False))
    return values


def _input(graph: Graph, node: Node, place: int, values: dict[str, Any]) -> Value | None:
    name = node.inputs[place]
    if name in graph.constants:
        return constant_value(OPERATORS[node.kind], place, graph.constants[name], _META)
    if name and name not in values:
        raise UnreadError(f"takes {name!r}, which no node before it computes")
    return values[name] if name else None


def _stays_inside(node: Node, values: dict[str, Any], inside: set[str]) -> bool:
    """Whether a node's output has as many places on the axis of images as an input that counts images inside."""
    axis = axis_of_images(values[node.outputs[0]])
    sources = [values[name] for name in node.inputs if name in inside]
    return axis is not None and any(
        values[node.outputs[0]].shape[axis] == source.shape[axis_of_images(source) or 0] > TRIAL for source in sources
    )


def _require_memory(values: tuple[Any, ...], images: int) -> None:
    """Refuse values that are too large for a batch, from their sizes for ``TRIAL`` images."""
    for value in (part for found in values for part in (found if isinstance(found, list) else [found])):
        size = math.prod(value.shape)
        size = size // TRIAL * images if size % TRIAL == 0 else size
        if size > VALUES_AT_ONCE:
            raise UnreadError(f"makes a value of {size:,} numbers, more than {VALUES_AT_ONCE:,}")
