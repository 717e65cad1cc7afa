"""Canonical forms: operators for which engines have integer kernels, with the values of those that they replace.

``LAYERS`` are rules for the decomposition of a trace. ``simplify`` changes the decomposed graph. The definitions are
this project's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from acq.network.affine import affine_of, sizes
from acq.network.constants import constant, replace_constant, shape_of
from acq.network.operators import PADS, ROLES, Role, keeps_zero, operator_of, pads_with_values, sole_user

aten = torch.ops.aten
_PAIR = 2
# operators of two tensors, and the operator in which a number is the first operand
_ARITHMETIC: dict[Any, Any] = {
    aten.add.Tensor: aten.add.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.sub.Tensor: aten.rsub.Scalar,
    aten.div.Tensor: None,
}


def simplify(graph: fx.GraphModule) -> None:
    """Rewrite a decomposed graph whose constants are folded; it computes the same up to rounding.

    Args:
        graph: The graph; it changes.
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.prelu.default:
            _replace_slope(graph, node)
        elif node.target in _ARITHMETIC:
            _take_number(graph, node)
            _scale_before_move(graph, node)
        elif node.target is aten.unsqueeze.default:
            _cancel_squeeze(node)
        elif node.target is aten.linear.default:
            _take_constants(graph, node)
        elif node.target is aten.layer_norm.default:
            _share_gains(graph, node)
        elif node.target is aten.batch_norm.default:
            _move_up(node, _removes_row)
        elif ROLES.get(operator_of(node)) == Role.RECTIFIER:
            _move_up(node, _passes_with_zero if keeps_zero(node) else _passes)
    graph.graph.eliminate_dead_code()


def _conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,), dilation: Sequence[int] = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    """A convolution of images with one row."""
    images, kernels = x.unsqueeze(-2), weight.unsqueeze(-2)
    strides, dilations = [1, *stride], [1, *dilation]
    if isinstance(padding, str):
        rows = aten.conv2d.padding(images, kernels, bias, strides, padding, dilations, groups)
    else:
        rows = aten.conv2d.default(images, kernels, bias, strides, [0, *padding], dilations, groups)
    found: Tensor = rows.squeeze(-2)
    return found


def _conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,), groups: int = 1, dilation: Sequence[int] = (1,),
) -> Tensor:  # fmt: skip
    """A convolution whose channels are the places between two inputs, then a shuffle of these to their places.

    An output at ``s * u + r`` takes the input at ``u - j`` times the weight at ``s * j + r``. So each phase ``r`` is a
    convolution with ``ceil(kernel / s)`` weights in reversed order. One stride per axis and dilations stay as they are.
    """
    strides, pads, more, dilations = (_both(value) for value in (stride, padding, output_padding, dilation))
    if strides[0] != strides[1] or dilations != [1, 1] or x.dim() != 4:
        y: Tensor = aten.convolution.default(x, weight, bias, strides, pads, dilations, True, more, groups)
        return y
    step = strides[0]
    kernel = list(weight.shape[2:])
    taps = [-(-size // step) for size in kernel]
    # rows of zeros behind the last input that an output padding reaches
    extra = [max(0, -(-(m - p - step * t + k) // step)) for m, p, t, k in zip(more, pads, taps, kernel, strict=True)]
    around = [t - 1 + e for t, e in zip(taps, extra, strict=True)]
    phases = None if bias is None else bias.repeat_interleave(step * step)
    y = aten.conv2d.default(x, _phases(weight, taps, step, groups), phases, [1, 1], around, [1, 1], groups)
    y = aten.pixel_shuffle.default(y, step) if step > 1 else y
    for axis, (p, e, m, k) in enumerate(zip(pads, extra, more, kernel, strict=True), 2):
        start, size = p + step * e, (x.shape[axis] - 1) * step - 2 * p + k + m
        if start or size != y.shape[axis]:
            y = aten.slice.Tensor(y, axis, start, start + size)
    return y


def _phases(weight: Tensor, taps: Sequence[int], step: int, groups: int) -> Tensor:
    """Weights [C, K / groups, H, W] of a transposed convolution as [K * step^2, C / groups, H / step, W / step]."""
    inputs, outputs = weight.shape[:2]
    missing = [step * count - size for count, size in zip(taps, weight.shape[2:], strict=True)]
    padded = F.pad(weight, (0, missing[1], 0, missing[0]))
    split = padded.reshape(groups, inputs // groups, outputs, taps[0], step, taps[1], step).flip((3, 5))
    return split.permute(0, 2, 4, 6, 1, 3, 5).reshape(groups * outputs * step * step, inputs // groups, *taps)


def _both(value: Sequence[int]) -> list[int]:
    return [*value] if len(value) == _PAIR else [value[0], value[0]]


LAYERS: dict[Any, Callable[..., Tensor]] = {
    aten.conv1d.default: _conv1d,
    aten.conv1d.padding: _conv1d,
    aten.conv_transpose2d.input: _conv_transpose2d,
}


def _replace_slope(graph: fx.GraphModule, node: fx.Node) -> None:
    """A rectifier with one learned slope is a leaky rectifier."""
    slope = constant(graph, node.args[1])
    if slope is not None and slope.numel() == 1:
        node.target, node.args = aten.leaky_relu.default, (node.args[0], float(slope))


def _take_number(graph: fx.GraphModule, node: fx.Node) -> None:
    """A constant of one value is a number."""
    constants = [constant(graph, value) for value in node.args[:2]]
    for place, value in enumerate(constants):
        other: Any = node.args[1 - place]
        if value is None or value.numel() != 1 or not isinstance(other, fx.Node) or constants[1 - place] is not None:
            continue
        if not value.is_floating_point() or shape_of(other) != shape_of(node):
            continue
        swapped = _ARITHMETIC[node.target]
        if place == 1:
            node.args = (other, float(value), *node.args[2:])
        elif swapped is not None and not node.kwargs and len(node.args) == _PAIR:
            node.target, node.args = swapped, (other, float(value))
        return


def _cancel_squeeze(node: fx.Node) -> None:
    """A row that is removed and put back, as between two convolutions over one axis."""
    source, axis = node.args[:2]
    if isinstance(source, fx.Node) and source.target is aten.squeeze.dim:
        whole, removed = source.args[:2]
        rank = len(shape_of(node))
        assert isinstance(axis, int)
        assert isinstance(removed, int)
        if isinstance(whole, fx.Node) and len(shape_of(whole)) == rank and axis % rank == removed % rank:
            node.replace_all_uses_with(whole)


def _take_constants(graph: fx.GraphModule, layer: fx.Node) -> None:
    """Constants of a linear layer's inputs, such as a batch norm: ``W (a x + b) + c = (W a) x + (W b + c)``."""
    while True:
        source: Any = layer.args[0]
        affine = affine_of(graph, source) if isinstance(source, fx.Node) and sole_user(source) is layer else None
        weight, bias = (constant(graph, value) for value in (*layer.args, None)[1:3])
        if affine is None or weight is None or affine.axis not in (None, len(shape_of(source)) - 1):
            return
        shift = weight @ affine.shift.expand(weight.shape[1])
        layer.args = (affine.source, *layer.args[1:])
        replace_constant(graph, layer, 1, weight * affine.factor)
        replace_constant(graph, layer, 2, shift if bias is None else bias + shift)


def _scale_before_move(graph: fx.GraphModule, node: fx.Node) -> None:
    """Put constants of channels, such as a layer scale, before a permutation and so right behind the layer."""
    affine = affine_of(graph, node)
    move = None if affine is None or affine.axis is None else affine.source
    layer: Any = move.args[0] if move is not None and move.target is aten.permute.default else None
    if move is None or affine is None or sole_user(move) is not node or layer is None:
        return
    if layer.target not in (aten.linear.default, aten.conv2d.default) or sole_user(layer) is not move:
        return
    place = node.args.index(move)
    order: Any = move.args[1]
    value = constant(graph, node.args[1 - place])
    assert value is not None
    assert affine.axis is not None
    behind = len(order) - 1 - order[affine.axis] % len(order)
    node.replace_all_uses_with(move)
    move.prepend(node)
    move.replace_input_with(layer, node)
    node.replace_input_with(move, layer)
    node.meta["val"] = layer.meta["val"]
    replace_constant(graph, node, 1 - place, value.reshape(-1, *(1,) * behind))


def _share_gains(graph: fx.GraphModule, norm: fx.Node) -> None:
    """Give the square root of a layer norm's gains to the linear layers that alone read its values.

    Values and weights are both quantized, and each then holds half of the difference between channels: the idea of
    SmoothQuant (Xiao et al., arXiv 2211.10438), applied to gains in place of observed maxima.
    """
    gain, shift = (constant(graph, value) for value in (*norm.args[2:4], None, None)[:2])
    layers = _linear_readers(graph, norm)
    if gain is None or gain.dim() != 1 or not layers:
        return
    given = sizes(gain).sqrt()
    for layer in layers:
        weight = constant(graph, layer.args[1])
        assert weight is not None
        replace_constant(graph, layer, 1, weight * given)
    replace_constant(graph, norm, 2, gain / given)
    if shift is not None:
        replace_constant(graph, norm, 3, shift / given)


def _linear_readers(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The linear layers that read a value, also moved with its last axis in place; empty if others read it, too."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.target is aten.linear.default and constant(graph, user.args[1]) is not None:
            layers = [user] if user.args[0] is node else []
        else:
            layers = _linear_readers(graph, user) if _keeps_last_axis(user) else []
        if not layers:
            return []
        found += layers
    return found


def _keeps_last_axis(move: fx.Node) -> bool:
    """Whether an operator moves whole vectors along the last axis."""
    source: Any = move.args[0] if move.args else None
    if not isinstance(source, fx.Node) or shape_of(source)[-1:] != shape_of(move)[-1:]:
        return False
    last = len(shape_of(source)) - 1
    if move.target is aten.permute.default:
        order: Any = move.args[1]
        return bool(order[-1] % len(order) == last)
    if move.target is aten.transpose.int:
        return last not in [axis % (last + 1) for axis in move.args[1:] if isinstance(axis, int)]
    if move.target is aten.roll.default:
        axes: Any = (*move.args, ())[2]
        return bool(axes) and last not in [axis % (last + 1) for axis in axes]
    if move.target in (aten.select.int, aten.slice.Tensor):
        axis: Any = (*move.args, 0)[1]
        return bool(axis % (last + 1) != last)
    return move.target is aten.reshape.default


def _move_up(node: fx.Node, passes: Callable[[fx.Node], bool]) -> None:
    """Put an operator on single values before those that move values, and so behind the layer that computes them."""
    last: Any = node.args[0]
    first = last
    while first.op == "call_function" and sole_user(first) is not None and passes(first):
        first, source = first.args[0], first
    if first is last or sole_user(first) is None:
        return
    node.replace_all_uses_with(last)
    node.args = (first, *node.args[1:])
    source.prepend(node)
    source.replace_input_with(first, node)
    node.meta["val"] = first.meta["val"]


def _removes_row(move: fx.Node) -> bool:
    """Whether an operator makes [N, C, L] of [N, C, 1, L]."""
    source, axis = move.args[0], move.args[1] if len(move.args) > 1 else None
    rank = len(shape_of(source)) if isinstance(source, fx.Node) else 0
    return move.target is aten.squeeze.dim and isinstance(axis, int) and rank == 4 and axis % rank >= 2


def _passes(move: fx.Node) -> bool:
    """Whether an operator moves values in their order and adds none, so that bounds may be applied before it."""
    return _passes_with_zero(move) and operator_of(move) not in PADS


def _passes_with_zero(move: fx.Node) -> bool:
    """The same for bounds that keep zero, which pads add."""
    source: Any = move.args[0]
    if move.target is operator.getitem:  # of a pool with indices or a split; others compute what they return
        return bool(move.args[1] == 0) and _passes_with_zero(source)
    if pads_with_values(move):
        return False
    return ROLES.get(operator_of(move)) == Role.MOVE
