"""Where the axes of a value were before an operator, and which axis holds the channels of the last layer."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from acq.network.constants import shape_of
from acq.network.trace import aten

SHAPES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default, aten.unsqueeze.default,
)  # fmt: skip
COPIES = (aten.contiguous.default, aten.clone.default, aten._to_copy.default)
TURNS = (aten.permute.default, aten.transpose.int)
_RESHAPES = (*SHAPES, aten.unflatten.int, aten._unsafe_view.default)
_REARRANGES = (*TURNS, *_RESHAPES, aten.select.int)
_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.convolution.default,
    aten.conv_transpose2d.input,
)  # fmt: skip
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default, aten.baddbmm.default, aten.addmm.default)


def axis_before(node: fx.Node, axis: int) -> int | None:
    """The axis of an operator's input that an axis of its value was.

    Args:
        node: The operator.
        axis: Of its value, counted from the first.

    Returns:
        The axis; None where the operator mixes it with others, changes its order, or is none that moves values.
    """
    source, *given = node.args
    if not isinstance(source, fx.Node):
        return None
    before, after = shape_of(source), shape_of(node)
    if node.target in (*COPIES, aten.slice.Tensor):
        return axis
    if node.target in TURNS:
        return _order(node, len(before))[axis]
    if node.target is aten.select.int:
        left: Any = given[0]
        return axis + int(axis >= left % len(before))
    if node.target not in _RESHAPES:
        return None
    if before[: axis + 1] == after[: axis + 1]:
        return axis
    behind = len(after) - axis
    return len(before) - behind if before[-behind:] == after[-behind:] else None


def channel_axes(graph: fx.Graph) -> dict[fx.Node, int]:
    """For each value, the axis with the channels of the last layer before it; none where that is not known.

    A convolution puts them on axis 1. A linear layer leaves them where they were, and so does every operator that
    keeps the order of axes.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        rank = len(shape_of(node))
        if node.op != "call_function" or not rank or node.target in _PRODUCTS:
            continue
        if node.target in _CONVOLUTIONS:
            found[node] = 1
        elif node.target in _REARRANGES:
            old = found.get(node.args[0], -1)
            places = [axis for axis in range(rank) if axis_before(node, axis) == old]
            found.update((node, axis) for axis in places[:1])
        else:
            whole = node.args[0] if node.target is operator.getitem else node
            axes = {found[source] for source in whole.all_input_nodes if _has_axis(source, rank, found)}
            found.update((node, axis) for axis in axes if len(axes) == 1)
    return found


def _has_axis(source: fx.Node, rank: int, found: dict[fx.Node, int]) -> bool:
    return source in found and len(shape_of(source)) == rank


def _order(node: fx.Node, rank: int) -> list[int]:
    """The axes of the input in the order in which a permute or a transpose puts them."""
    given: Any = node.args[1:]
    if node.target is aten.permute.default:
        return [axis % rank for axis in given[0]]
    order, (one, other) = list(range(rank)), (axis % rank for axis in given)
    order[one], order[other] = other, one
    return order
