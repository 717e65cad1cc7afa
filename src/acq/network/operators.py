"""Operators that the planner knows, and the role that each one has in a quantized network."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx


class Role(StrEnum):
    """What a node does in the quantized network."""

    IMAGE = "image"
    CONVOLUTION = "convolution"
    LINEAR = "linear"
    BATCH_NORM = "batch norm"  # before the planner decides how it is computed
    FOLD = "fold"  # constants, such as a batch norm, that become part of the layer before them
    RESCALE = "rescale"  # constants of channels, such as a batch norm, that become a depthwise 1 x 1 convolution
    RECTIFIER = "rectifier"
    NONLINEARITY = "nonlinearity"
    ADD = "add"
    PRODUCT = "product"
    CONCAT = "concat"
    MAXIMUM = "maximum"  # or minimum, of two tensors
    POOL = "pool"
    PAD = "pad"  # with a value other than zero
    MOVE = "move"  # copies, selects or reorders values
    SHAPE = "shape"  # no tensor of floats
    CONSTANT = "constant"
    FLOAT = "float"


RELU = "aten.relu.default"
HARDTANH = "aten.hardtanh.default"
DIVIDE = "aten.div.Tensor"
SUBTRACT = "aten.sub.Tensor"
BATCH_NORM = "aten.batch_norm.default"
# arithmetic with another tensor or with a number
PRODUCTS = ("aten.mul.Tensor", "aten.mul.Scalar")
QUOTIENTS = ("aten.div.Tensor", "aten.div.Scalar")
SUMS = ("aten.add.Tensor", "aten.add.Scalar")
DIFFERENCES = ("aten.sub.Tensor", "aten.sub.Scalar")
REVERSED_DIFFERENCES = ("aten.rsub.Scalar", "aten.rsub.Tensor")
PADS = ("aten.pad.default", "aten.constant_pad_nd.default")
ADAPTIVE = ("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
GATED = ("aten.silu.default", "aten.hardswish.default")  # x * s(x) in one operator

_OVERLOADS: dict[Role, tuple[str, ...]] = {
    Role.CONVOLUTION: ("conv2d.default", "conv2d.padding"),
    Role.LINEAR: ("linear.default",),
    Role.BATCH_NORM: ("batch_norm.default",),
    Role.RECTIFIER: (
        "relu.default", "relu6.default", "hardtanh.default",
        "clamp.default", "clamp_min.default", "clamp_max.default",
    ),
    Role.NONLINEARITY: (
        "silu.default", "hardswish.default", "hardsigmoid.default", "sigmoid.default", "gelu.default", "tanh.default",
        "elu.default", "leaky_relu.default", "prelu.default", "softplus.default", "mish.default", "selu.default",
        "celu.default",
    ),
    Role.ADD: ("add.Tensor", "sub.Tensor", "rsub.Scalar", "add.Scalar", "sub.Scalar"),
    Role.PRODUCT: ("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar"),
    Role.CONCAT: ("cat.default", "stack.default", "concat.default"),
    Role.MAXIMUM: ("maximum.default", "minimum.default", "max.other", "min.other"),
    Role.POOL: (
        "avg_pool1d.default", "avg_pool2d.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default",
        "mean.dim", "sum.dim_IntList",
        "upsample_linear1d.default", "upsample_linear1d.vec", "upsample_bilinear2d.default", "upsample_bilinear2d.vec",
    ),
    Role.MOVE: (
        "slice.Tensor", "select.int", "unbind.int", "split.Tensor", "split.sizes", "split_with_sizes.default",
        "chunk.default", "index.Tensor", "index_select.default", "pad.default", "constant_pad_nd.default",
        "expand.default", "repeat.default", "repeat_interleave.self_int",
        "flatten.using_ints", "unflatten.int", "view.default", "reshape.default", "_unsafe_view.default",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "contiguous.default",
        "permute.default", "transpose.int", "t.default", "flip.default", "roll.default",
        "max_pool1d.default", "max_pool2d.default", "max_pool2d_with_indices.default",
        "adaptive_max_pool1d.default", "adaptive_max_pool2d.default",
        "amax.default", "amin.default", "max.dim", "min.dim",
        "channel_shuffle.default", "native_channel_shuffle.default", "pixel_shuffle.default",
        "pixel_unshuffle.default",
        "upsample_nearest1d.default", "upsample_nearest1d.vec", "upsample_nearest2d.default", "upsample_nearest2d.vec",
        "_upsample_nearest_exact1d.default", "_upsample_nearest_exact1d.vec",
        "_upsample_nearest_exact2d.default", "_upsample_nearest_exact2d.vec",
    ),
    Role.SHAPE: ("sym_size.int",),
}  # fmt: skip

ROLES: dict[str, Role] = {f"aten.{name}": role for role, names in _OVERLOADS.items() for name in names}
ROLES["_operator.getitem"] = Role.MOVE
LAYER_NORM, GROUP_NORM = "aten.layer_norm.default", "aten.group_norm.default"
SOFTMAX = "aten.softmax.int"
# products of two computed matrices; one by a constant matrix becomes a linear layer (acq.network.rewrites)
MATRIX_PRODUCTS = frozenset({"aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.baddbmm.default"})
# kept whole outside torch's core set: parts of a group norm demand a contiguous input, and files hold the others whole
WHOLE = frozenset({GROUP_NORM, LAYER_NORM, SOFTMAX, "aten.matmul.default"})
VOCABULARY = WHOLE.union(ROLES)
# norms of each image, and what attention is made of beside layers: engines win nothing with integers there
FLOAT_BY_DESIGN = MATRIX_PRODUCTS | {LAYER_NORM, GROUP_NORM, SOFTMAX}


def operator_of(node: fx.Node) -> str:
    """The name of a node's operator, such as ``aten.relu.default``, ``image`` or ``constant``."""
    if node.op in ("placeholder", "get_attr"):
        return "image" if node.op == "placeholder" else "constant"
    target: Any = node.target
    name = str(target)
    return name if name.startswith("aten.") else f"{target.__module__}.{target.__name__}"


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is a floating-point tensor, or a tuple that begins with one."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()


def keeps_zero(node: fx.Node) -> bool:
    """Whether a rectifier, or another function of one tensor, is zero at zero."""
    target: Any = node.target
    return node.op == "call_function" and not bool(target(torch.zeros(1), *node.args[1:], **node.kwargs).any())


def float_inputs(node: fx.Node) -> list[fx.Node]:
    """The floating-point inputs of a node, without parameters and buffers of the network."""
    return [value for value in node.all_input_nodes if value.op != "get_attr" and is_float(value)]


def is_constant(node: fx.Node) -> bool:
    """Whether a node's value depends only on parameters and buffers of the network."""
    inputs = node.all_input_nodes
    return node.op == "get_attr" or (node.op == "call_function" and bool(inputs) and all(map(is_constant, inputs)))


def pads_with_values(node: fx.Node) -> bool:
    """Whether a node is a pad that adds numbers other than zero."""
    given = (*node.args[2:], *node.kwargs.values())
    return operator_of(node) in PADS and any(value for value in given if isinstance(value, int | float))


def repeats(node: fx.Node) -> bool:
    """Whether a node is an adaptive average pool to a multiple of its input's size: each window has one value."""
    if operator_of(node) not in ADAPTIVE:
        return False
    before, after = (each.meta["val"].shape[2:] for each in (node.args[0], node))  # type: ignore[union-attr]
    return all(isinstance(old, int) and new % old == 0 for old, new in zip(before, after, strict=True))


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only consumer of a node; None if there are none or several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None
