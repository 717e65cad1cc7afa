"""What a traced network computes from its weights alone, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from acq.files.limits import FOLDED_VALUES
from acq.network.constants import constant, module_at
from acq.network.names import module_of, packet_of

aten = torch.ops.aten
_LAYERS = (
    aten.conv2d.default, aten.conv2d.padding, aten.linear.default, aten.convolution.default,
    aten.conv1d.default, aten.conv1d.padding, aten.conv_transpose2d.input,
)  # fmt: skip
_FILLS = (aten.full.default, aten.full_like.default)
_LAYER_INPUTS = {1: "weight", 2: "bias"}


def fold_constants(graph: fx.GraphModule) -> None:
    """Replace every operator that depends on no image by its value, a ``get_attr`` node.

    Normalized weights, coordinate maps, position tables and masks become constants. The weight of a layer is stored
    as ``weight`` of the module that calls the layer, so the layer has the name of that module. What would make the
    constants much larger stays computed, such as a table that is repeated many times.

    Args:
        graph: A traced network, decomposed; it changes in place.
    """
    made: dict[str, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.target in _FILLS:
            _spread(graph, node, made)
    values = _values(graph)
    borders = [node for node in values if node.op == "call_function" and any(user not in values for user in node.users)]
    _forget(graph, [node for node in values if node.op == "get_attr" and all(user in values for user in node.users)])
    for node in borders:
        value = values[node]
        if isinstance(value, Tensor):
            node.replace_all_uses_with(_stored(graph, node, value, made))
        else:
            _write_out(node, value)
    for node in reversed(values):
        if not node.users:
            graph.graph.erase_node(node)


def _values(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """The value of every node that depends on no image."""
    values: dict[fx.Node, Any] = {}
    budget = FOLDED_VALUES
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = constant(graph, node)
            if value is not None:
                values[node] = value
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            growth = _size(node) - sum(_size(source) for source in node.all_input_nodes)
            if _is_fixed(node) and growth <= budget:
                budget -= max(growth, 0)
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values


def _is_fixed(node: fx.Node) -> bool:
    """Whether an operator gives the same value each time."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return bool(node.all_input_nodes)  # arithmetic on numbers, or an item of a tuple
    return torch.Tag.nondeterministic_seeded not in node.target.tags and not node.target._schema.is_mutable


def _size(node: fx.Node) -> int:
    """The count of a node's values; of those of all tensors where it returns several."""
    value = node.meta.get("val")
    several = value if isinstance(value, list | tuple) else [value]
    return sum(int(tensor.numel()) for tensor in several if isinstance(tensor, Tensor))


def _forget(graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Remove the tensors that only folded operators read."""
    for target in {str(node.target) for node in nodes if node.users}:
        path, _, name = target.rpartition(".")
        delattr(graph.get_submodule(path), name)


def _spread(graph: fx.GraphModule, fill: fx.Node, made: dict[str, Tensor]) -> None:
    """Expand one stored number to the batch, in place of a tensor that is made on one device in every pass."""
    shape, number = fill.meta["val"].shape, fill.args[1]
    if all(isinstance(size, int) for size in shape) or not isinstance(number, bool | int | float):
        return
    given: Any = fill.args[0]
    with graph.graph.inserting_before(fill):
        if fill.target is aten.full_like.default:
            given = [
                size if isinstance(size, int) else _size_node(graph, given, axis) for axis, size in enumerate(shape)
            ]
        value = torch.full((), number, dtype=fill.meta["val"].dtype, device=fill.meta["val"].device)
        spread = graph.graph.call_function(aten.expand.default, (_stored(graph, fill, value, made), list(given)))
    spread.meta = dict(fill.meta)
    fill.replace_all_uses_with(spread)
    graph.graph.erase_node(fill)


def _size_node(graph: fx.GraphModule, source: fx.Node, axis: int) -> fx.Node:
    node = graph.graph.call_function(aten.sym_size.int, (source, axis))
    node.meta = {"val": source.meta["val"].shape[axis]}
    return node


def _stored(graph: fx.GraphModule, node: fx.Node, value: Tensor, made: dict[str, Tensor]) -> fx.Node:
    """A constant for the place of an operator; equal ones are stored once, because a layer may be called twice."""
    value = value.detach().clone(memory_format=torch.contiguous_format)
    target = next((name for name, there in made.items() if _is_equal(there, value)), None)
    if target is None:
        target = _free_name(graph, _wanted(node))
        path, _, last = target.rpartition(".")
        module_at(graph, path).register_buffer(last, value)
        made[target] = value
    with graph.graph.inserting_before(node):
        stored = graph.graph.create_node("get_attr", target)
    stored.meta = {"val": value}
    return stored


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _free_name(graph: fx.GraphModule, wanted: str) -> str:
    name, count = wanted, 1
    while hasattr(module_at(graph, name.rpartition(".")[0]), name.rpartition(".")[2]):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _wanted(node: fx.Node) -> str:
    """The name of a constant: of its place in the layer that reads it, or of the operator that it replaces."""
    for user in node.users:
        for index, role in _LAYER_INPUTS.items():
            if user.target in _LAYERS and len(user.args) > index and user.args[index] is node:
                return f"{module_of(user)[0]}.{role}".lstrip(".")
    return f"{module_of(node)[0]}.{packet_of(node)}".lstrip(".")


def _write_out(node: fx.Node, value: Any) -> None:
    """Put a number in the place of the operator that computes it."""
    for user in list(node.users):
        user.args = map_arg(user.args, lambda source: value if source is node else source)
        user.kwargs = map_arg(user.kwargs, lambda source: value if source is node else source)
