"""Norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import Node, only, reads
from acq.zoo.onnx.values import UnreadError

_AFFINE = ("", "weight", "bias")
_PER_CHANNEL = 21  # the version from which group norms have a weight per channel and not per group


@reads("BatchNormalization", parameters=("", "weight", "bias", "running_mean", "running_var"))
def _batch_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    epsilon = node.get("epsilon", 1e-5)
    if not node.get("training_mode", 0):
        only(node)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.1, epsilon)
    axes, kept = [axis for axis in range(x.dim()) if axis != 1], node.get("momentum", 0.9)
    own_mean, own_variance = x.mean(axes), x.var(axes, correction=0)
    y = F.batch_norm(x, own_mean, own_variance, weight, bias, False, 0.1, epsilon)
    return y, kept * mean + (1 - kept) * own_mean, kept * variance + (1 - kept) * own_variance


@reads("InstanceNormalization", parameters=_AFFINE)
def _instance_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return F.group_norm(x, x.shape[1], weight, bias, node.get("epsilon", 1e-5))


@reads("GroupNormalization", parameters=_AFFINE)
def _group_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    groups = node.get("num_groups")
    if not isinstance(groups, int) or groups < 1 or x.shape[1] % groups:
        raise UnreadError(f"has {groups} groups of {x.shape[1]} channels")
    if node.opset < _PER_CHANNEL:
        weight, bias = (values.repeat_interleave(x.shape[1] // groups) for values in (weight, bias))
    return F.group_norm(x, groups, weight, bias, node.get("epsilon", 1e-5))


@reads("LayerNormalization", parameters=_AFFINE)
def _layer_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    only(node)
    shape = list(x.shape[node.get("axis", -1) :])
    weight = weight.expand(shape)
    bias = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, weight, bias, node.get("epsilon", 1e-5))


@reads("RMSNormalization", parameters=_AFFINE)
def _rms_norm(node: Node, x: Tensor, weight: Tensor) -> Any:
    axes = list(range(node.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, True) + node.get("epsilon", 1e-5)) * weight


@reads("LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Any:
    axis, power = node.get("axis", -1), node.get("p", 2)
    if power not in (1, 2):
        raise UnreadError(f"has p {power}")
    size = x.abs().sum(axis, True) if power == 1 else (x * x).sum(axis, True).sqrt()
    return torch.where(size == 0, torch.zeros_like(x), x / size)


@reads("MeanVarianceNormalization")
def _mean_variance_norm(node: Node, x: Tensor) -> Any:
    axes = list(node.get("axes") or [0, 2, 3])
    centred = x - x.mean(axes, True)
    return centred / ((centred * centred).mean(axes, True).sqrt() + 1e-9)


@reads("LRN")
def _local_response_norm(node: Node, x: Tensor) -> Any:
    size, alpha, beta, bias = (node.get(*pair) for pair in _RESPONSE)
    if not isinstance(size, int) or size < 1:
        raise UnreadError(f"has size {size}")
    squares = F.pad((x * x).flatten(2).unsqueeze(1), (0, 0, (size - 1) // 2, size // 2))
    sums = F.avg_pool2d(squares, (size, 1), 1).squeeze(1).reshape(x.shape)
    return x / (sums * alpha + bias).pow(beta)


_RESPONSE = (("size", None), ("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
