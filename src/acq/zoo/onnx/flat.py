"""Values taken from a flat tensor by a table of places, as torch writes ``as_strided``, taken from each image instead.

A file may make a tensor flat and name the places of all its numbers. Then the table has the images in front, and each
image takes the same places of its own numbers. A table may also name all images in order, as torch writes an
assignment to all of them. A file for any number of images computes its tables from that number. Two numbers tell
whether they are of these kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.registry import Node
from acq.zoo.onnx.trial import values_without_images
from acq.zoo.onnx.values import is_host

_COUNTS = (2, 3)  # numbers of images that show how a table follows from them


@dataclass(frozen=True)
class _Own:
    """What a table takes of each image.

    Attributes:
        places: Among the image's own numbers.
        step: How many numbers an image has; 0 where a table for one image does not tell.
    """

    places: NDArray[Any]
    step: int

    def same(self, other: _Own) -> bool:
        """Whether tables for two numbers of images take the same."""
        return self.step == other.step and np.array_equal(self.places, other.places)


def by_image(graph: Graph, fixed: int | None, size: Sequence[int]) -> Graph:
    """The graph in which each image's numbers are taken by themselves.

    Args:
        graph: The graph.
        fixed: The number of images that it is made for; None where that is free.
        size: Of one image, as the graph takes it.

    Raises:
        RequestError: A node cannot be computed for such images.
    """
    free = fixed is None
    taking = {node for node in graph.nodes if _takes(node) and free == (node.inputs[1] not in graph.constants)}
    if not taking:
        return graph
    constants, nodes = dict(graph.constants), list[Node]()
    made = {output: node for node in graph.nodes for output in node.outputs}
    counts = _COUNTS if fixed is None else (fixed,)
    passes: list[Mapping[str, Any]] = [constants]
    if free:
        passes = [values_without_images(graph, torch.empty(count, *size, device="meta")) for count in counts]
    for node in graph.nodes:
        source = made.get(node.inputs[0]) if node in taking and node.kind == "Gather" else None
        flat = source is not None and _flattens(source, constants)
        if source is not None and flat and (own := _own(node.inputs[1], passes, counts)) is not None:
            nodes += _taken(source, node, own, fixed, constants)
        elif free and node in taking and not flat and _names_all(node, passes):
            values = node.inputs[0 if node.kind == "Gather" else 2]
            nodes.append(replace(node, kind="Identity", inputs=(values,), attributes={}))
        else:
            nodes.append(node)
    return replace(graph, nodes=_read(nodes, graph.exits), constants=constants)


def _takes(node: Node) -> bool:
    """Whether a node selects or replaces numbers along the first axis by a table."""
    if node.kind == "ScatterND":
        return bool(node.get("reduction", "none") == "none")
    return node.kind == "Gather" and node.get("axis", 0) == 0


def _flattens(node: Node, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a node makes a tensor flat: its reader takes places along the only axis."""
    shape = constants.get(node.inputs[1]) if node.kind == "Reshape" and len(node.inputs) > 1 else None
    return shape is not None and shape.size == 1


def _own(name: str, passes: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> _Own | None:
    """What a table takes of each image, if it takes the same whatever their number."""
    found = [_own_of(values.get(name), count) for values, count in zip(passes, counts, strict=True)]
    first = found[0]
    return first if all(first and other and first.same(other) for other in found) else None


def _own_of(table: Any, count: int) -> _Own | None:
    """What a table for some images takes of each; None where they take different places."""
    if not is_host(table) or table.ndim < 2 or table.shape[0] != count or not table.size or table.min() < 0:
        return None
    one = table[0]
    step = (table[-1] - one).flat[0] // max(count - 1, 1)
    shifts = step * np.arange(count).reshape(-1, *(1,) * one.ndim)
    fits = count == 1 or (one.max() < step and np.array_equal(table, one + shifts))
    return _Own(one, int(step)) if fits else None


def _names_all(node: Node, passes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a node takes or replaces the values of every image, in order."""
    for values, count in zip(passes, _COUNTS, strict=True):
        whole, table, wanted = values.get(node.inputs[0]), values.get(node.inputs[1]), np.arange(count)
        if not isinstance(whole, Tensor) or not is_host(table) or whole.shape[0] != count:
            return False
        if not np.array_equal(table, wanted if node.kind == "Gather" else wanted.reshape(-1, 1)):
            return False
    return True


def _taken(
    flat: Node, node: Node, own: _Own, fixed: int | None, constants: dict[str, NDArray[Any]]
) -> tuple[Node, Node, Node]:
    """Nodes that make each image flat, take its numbers and give them the table's shape; adds to ``constants``."""
    name, count = node.outputs[0], -1 if fixed is None else fixed
    rows, table, shape = (f"{name}.{part}" for part in ("rows", "places", "shape"))
    constants[rows] = np.array([-1, own.step] if fixed is None else [fixed, -1])
    constants[table] = own.places.reshape(-1)
    constants[shape] = np.array([count, *own.places.shape])
    split, taken = f"{name}.split", f"{name}.taken"
    return (
        replace(flat, name=f"{node.name}.split", inputs=(flat.inputs[0], rows), outputs=(split,)),
        replace(node, inputs=(split, table), outputs=(taken,), attributes={"axis": 1}),
        replace(flat, name=f"{node.name}.shape", inputs=(taken, shape), outputs=node.outputs),
    )


def _read(nodes: Sequence[Node], exits: Sequence[str]) -> tuple[Node, ...]:
    """The nodes that some values need."""
    wanted, found = set(exits), list[Node]()
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            found.append(node)
            wanted.update(node.inputs)
    return tuple(found[::-1])
