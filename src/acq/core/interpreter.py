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


def value_of(module: nn.Module, graph: fx.Graph, node: fx.Node, *arguments: Any) -> Any:
    """Run a graph once and return the value of one node. Only what it needs is computed."""
    run = _PartialInterpreter(module, graph, node)
    run.run(*arguments, enable_io_processing=False)  # there is no output to give a structure
    return run.kept[node]


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


class _PartialInterpreter(KeepingInterpreter):
    """Runs only the inputs of a graph and the nodes that one node needs."""

    def __init__(self, module: nn.Module, graph: fx.Graph, node: fx.Node) -> None:
        super().__init__(module, graph, (node,))
        self.needed, waiting = set[fx.Node](), [node]
        while waiting:
            current = waiting.pop()
            if current not in self.needed:
                self.needed.add(current)
                waiting.extend(current.all_input_nodes)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node if it is needed."""
        return super().run_node(n) if n in self.needed or n.op == "placeholder" else None
