from __future__ import annotations

from onnx import helper

from acq.export.order import needed_in_order


def test_needed_nodes_stand_behind_what_they_read() -> None:
    """Nodes that nothing reads are dropped, and so are their inputs."""
    nodes = [
        helper.make_node("Add", ["late", "x"], ["y"]),
        helper.make_node("Relu", ["x"], ["unused"]),
        helper.make_node("Relu", ["x"], ["late"]),
        helper.make_node("Neg", ["unused"], ["unused too"]),
    ]
    found, needed = needed_in_order(nodes, ["y"])
    assert [node.output[0] for node in found] == ["late", "y"]
    assert needed == {"y", "late", "x"}
