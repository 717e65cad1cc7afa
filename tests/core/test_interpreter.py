from __future__ import annotations

import torch
from helpers import images, traced

from acq.core.interpreter import KeepingInterpreter
from acq.network.names import name_of


def test_chosen_values_are_kept() -> None:
    """One run returns the result of the graph and keeps the values of the chosen nodes only."""
    graph, x = traced("residual"), images(2)
    nodes = {name_of(node): node for node in graph.graph.nodes}
    chosen = nodes["middle.0.relu"], nodes["image"]
    interpreter = KeepingInterpreter(graph, graph.graph, chosen)
    result = interpreter.run(x)
    assert torch.equal(result, graph(x))
    assert set(interpreter.kept) == set(chosen)
    assert interpreter.kept[chosen[1]] is x
    assert interpreter.kept[chosen[0]].min() == 0


def test_nothing_is_kept_unless_chosen() -> None:
    """Without chosen nodes the interpreter holds no value."""
    graph = traced("residual")
    interpreter = KeepingInterpreter(graph, graph.graph)
    interpreter.run(images(1))
    assert interpreter.kept == {}
