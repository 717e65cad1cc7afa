"""Values taken from a flat tensor by a constant table, as torch writes ``as_strided``, taken from each image instead.

A file for one number of images may make a tensor flat and name the places of all its numbers. Then the table has the
images in front, and each image takes the same places of its own numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.registry import Node


def by_image(graph: Graph, fixed: int | None) -> Graph:
    """The graph in which each image's numbers are taken by themselves.

    Args:
        graph: The graph.
        fixed: The number of images that it is made for; None where that is free, and nothing changes.
    """
    if fixed is None:
        return graph
    constants, nodes = dict(graph.constants), list[Node]()
    made = {output: node for node in graph.nodes for output in node.outputs}
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.exits)
    gone: set[int] = set()
    for node in graph.nodes:
        places = _places_of_one(node, constants, fixed)
        source = made.get(node.inputs[0]) if places is not None else None
        if places is None or source is None or readers[node.inputs[0]] > 1 or not _flattens(source, constants):
            nodes.append(node)
            continue
        gone.add(id(source))
        nodes += _taken(source, node, places, fixed, constants)
    kept = tuple(node for node in nodes if id(node) not in gone)
    return replace(graph, nodes=kept, constants=constants)


def _flattens(node: Node, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a node makes a tensor flat: its reader takes places along the only axis."""
    shape = constants.get(node.inputs[1]) if node.kind == "Reshape" and len(node.inputs) > 1 else None
    return shape is not None and shape.size == 1


def _places_of_one(node: Node, constants: Mapping[str, NDArray[Any]], fixed: int) -> NDArray[Any] | None:
    """The table of one image; None where the node has no table of ``fixed`` images that take the same places."""
    table = constants.get(node.inputs[1]) if node.kind == "Gather" and node.get("axis", 0) == 0 else None
    if table is None or table.ndim < 2 or table.shape[0] != fixed or not table.size or table.min() < 0:
        return None
    one = table[0]
    step = (table[-1] - one).flat[0] // max(fixed - 1, 1)
    shifts = step * np.arange(fixed).reshape(-1, *(1,) * one.ndim)
    fits = fixed == 1 or (one.max() < step and np.array_equal(table, one + shifts))
    return one if fits else None


def _taken(
    flat: Node, node: Node, places: NDArray[Any], fixed: int, constants: dict[str, NDArray[Any]]
) -> tuple[Node, Node, Node]:
    """Nodes that make each image flat, take its numbers and give them the table's shape; adds to ``constants``."""
    name = node.outputs[0]
    rows, table, shape = (f"{name}.{part}" for part in ("rows", "places", "shape"))
    constants[rows] = np.array([fixed, -1])
    constants[table] = places.reshape(-1)
    constants[shape] = np.array([fixed, *places.shape])
    taken = f"{name}.taken"
    return (
        replace(flat, inputs=(flat.inputs[0], rows)),
        replace(node, inputs=(node.inputs[0], table), outputs=(taken,), attributes={"axis": 1}),
        replace(flat, name=f"{node.name}.shape", inputs=(taken, shape), outputs=node.outputs),
    )
