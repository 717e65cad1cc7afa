"""Operators that the planner knows, and the role that each one has in a quantized network."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

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
PADS = ("aten.pad.default", "aten.constant_pad_nd.default")
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
        "elu.default", "leaky_relu.default", "softplus.default", "mish.default", "selu.default", "celu.default",
    ),
    Role.ADD: ("add.Tensor", "sub.Tensor", "rsub.Scalar", "add.Scalar", "sub.Scalar"),
    Role.PRODUCT: ("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar"),
    Role.CONCAT: ("cat.default", "stack.default", "concat.default"),
    Role.POOL: (
        "avg_pool2d.default", "adaptive_avg_pool2d.default", "mean.dim", "mean.default", "sum.dim_IntList",
        "upsample_bilinear2d.default", "upsample_bilinear2d.vec",
    ),
    Role.MOVE: (
        "slice.Tensor", "select.int", "unbind.int", "split.Tensor", "split.sizes", "split_with_sizes.default",
        "chunk.default", "pad.default", "constant_pad_nd.default", "expand.default", "repeat.default",
        "flatten.using_ints", "unflatten.int", "view.default", "reshape.default", "_unsafe_view.default",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "contiguous.default",
        "permute.default", "transpose.int", "t.default", "flip.default", "roll.default",
        "max_pool2d.default", "adaptive_max_pool2d.default", "amax.default",
        "channel_shuffle.default", "native_channel_shuffle.default", "pixel_shuffle.default",
        "pixel_unshuffle.default", "upsample_nearest2d.default", "upsample_nearest2d.vec",
    ),
    Role.SHAPE: ("sym_size.int",),
}  # fmt: skip

ROLES: dict[str, Role] = {f"aten.{name}": role for role, names in _OVERLOADS.items() for name in names}
ROLES["_operator.getitem"] = Role.MOVE
# outside torch's core set and computed in floating point: torch's own parts of it demand a contiguous input
WHOLE = frozenset({"aten.group_norm.default"})
VOCABULARY = WHOLE.union(ROLES)


def operator_of(node: fx.Node) -> str:
    """The name of a node's operator, such as ``aten.relu.default``; ``image`` for the placeholder."""
    if node.op == "placeholder":
        return "image"
    target: Any = node.target
    name = str(target)
    return name if name.startswith("aten.") else f"{target.__module__}.{target.__name__}"


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is a floating-point tensor, or a tuple that begins with one."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()


def float_inputs(node: fx.Node) -> list[fx.Node]:
    """The floating-point inputs of a node, without parameters and buffers of the network."""
    return [value for value in node.all_input_nodes if value.op != "get_attr" and is_float(value)]


def is_constant(node: fx.Node) -> bool:
    """Whether a node's value depends only on parameters and buffers of the network."""
    inputs = node.all_input_nodes
    return node.op == "get_attr" or (node.op == "call_function" and bool(inputs) and all(map(is_constant, inputs)))


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only consumer of a node; None if there are none or several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None
