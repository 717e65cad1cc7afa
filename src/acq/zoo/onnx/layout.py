"""The layout of images: channels in front, or behind."""

from __future__ import annotations

from dataclasses import replace

from acq.zoo.onnx.graph import Graph

TO_FRONT = [0, 3, 1, 2]  # how an image's channels come in front


def without_turn(graph: Graph) -> Graph | None:
    """The graph for images with their channels in front, if all that it does first is to bring them there."""
    first = [node for node in graph.nodes if graph.entry in node.inputs]
    turns = [node.kind == "Transpose" and list(node.get("perm") or []) == TO_FRONT for node in first]
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
