"""An interpreter of fx graphs that keeps the values of chosen nodes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx, nn


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
