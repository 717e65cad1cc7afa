"""Which nodes of an ONNX graph are needed, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def needed_in_order(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that ``outputs`` need, each behind those that it reads, and the names of all values that they need."""
    producers = {name: node for node in nodes for name in node.output if name}
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.update(producers[name].output if name in producers else [name])
            waiting.extend(producers[name].input if name in producers else [])
    return _in_order([node for node in nodes if not needed.isdisjoint(node.output)]), needed


def _in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Move nodes behind those whose outputs they read; those that are already there keep their order.

    Raises:
        ValueError: Some nodes read each other's outputs.
    """
    missing = {name for node in nodes for name in node.output if name}
    found: list[onnx.NodeProto] = []
    waiting = list(nodes)
    while waiting:
        ready, later = [], []
        for node in waiting:
            if missing.isdisjoint(node.input):
                missing.difference_update(node.output)
                ready.append(node)
            else:
                later.append(node)
        if not ready:
            raise ValueError(f"nodes read each other: {', '.join(node.op_type for node in later)}")
        found, waiting = found + ready, later
    return found
