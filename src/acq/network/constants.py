"""Shapes and constants of a traced graph."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor, fx, nn


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor, with -1 for the batch dimension; () where the value is not a tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


def constant(graph: nn.Module, node: object) -> Tensor | None:
    """The tensor of a ``get_attr`` node; None for any other node or argument."""
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        return None
    value: object = attrgetter(str(node.target))(graph)
    return value if isinstance(value, Tensor) else None


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights and constants; the CPU where it has none."""
    return next(chain(network.parameters(), network.buffers()), torch.empty(0)).device


def replace_constant(graph: fx.GraphModule, user: fx.Node, place: int, value: Tensor) -> None:
    """Give a node another constant as an argument, under the name of the one that it has.

    Args:
        graph: The traced network; it changes.
        user: The node.
        place: The argument's place, such as 1 for a layer's weight; its bias, at 2, may be missing.
        value: The constant.
    """
    given = user.args[place] if len(user.args) > place else None
    known = given if isinstance(given, fx.Node) else user.args[1]
    assert isinstance(known, fx.Node)
    owner = str(known.target).rpartition(".")[0]
    leaf = str(given.target).rpartition(".")[2] if isinstance(given, fx.Node) else "bias"
    others = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr" and set(node.users) != {user}}
    taken = isinstance(given, fx.Node) and str(given.target) not in others
    module = graph.get_submodule(owner)
    while not taken and hasattr(module, leaf):  # another node has the old constant
        owner += "_"
        module = module_at(graph, owner)
    if hasattr(module, leaf):
        delattr(module, leaf)
    module.register_buffer(leaf, value.detach().clone())
    with graph.graph.inserting_before(user):
        made = graph.graph.create_node("get_attr", f"{owner}.{leaf}".lstrip("."))
    made.meta = {"val": value}
    user.args = (*user.args[:place], made, *user.args[place + 1 :])


def constant_before(graph: fx.GraphModule, user: fx.Node, like: fx.Node, value: Tensor, leaf: str = "") -> fx.Node:
    """A new constant that a node can take.

    Args:
        graph: The traced network; it changes.
        user: The node.
        like: The constant beside which it is stored.
        value: The tensor.
        leaf: The last part of its name, such as ``weight``; by default that of the other constant.
    """
    path, _, own = str(like.target).rpartition(".")
    name = leaf or own
    while hasattr(module_at(graph, path), name):
        path += "_" if leaf else ""
        name += "" if leaf else "_"
    module_at(graph, path).register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
    with graph.graph.inserting_before(user):
        made = graph.graph.create_node("get_attr", f"{path}.{name}".lstrip("."))
    made.meta = {"val": value}
    return made


def module_at(graph: fx.GraphModule, path: str) -> nn.Module:
    """The module at a path, with empty modules where there are none."""
    found: nn.Module = graph
    for name in filter(None, path.split(".")):
        if not isinstance(getattr(found, name, None), nn.Module):
            found.add_module(name, nn.Module())
        found = getattr(found, name)
    return found
