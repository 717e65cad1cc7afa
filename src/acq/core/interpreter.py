"""An interpreter of fx graphs that keeps the values of chosen nodes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx, nn


def all_values(module: nn.Module, graph: fx.Graph, *arguments: Any) -> dict[fx.Node, Any]:
    """Run a graph once and return the value of every node but the output."""
    run = KeepingInterpreter(module, graph, [node for node in graph.nodes if node.op != "output"])
    run.run(*arguments)
    return run.kept


class KeepingInterpreter(fx.Interpreter):
    """Runs a graph once and keeps the values of chosen nodes in ``kept``. Create one for each run.

    Args:
        module: Owner of the modules, parameters and buffers that the graph refers to.
        graph: The graph to run.
        nodes: The nodes whose values are kept.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, nodes: Collection[fx.Node] = ()) -> None:
        super().__init__(module, graph=graph)
        self.nodes = frozenset(nodes)
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if n in self.nodes:
            self.kept[n] = value
        return value
