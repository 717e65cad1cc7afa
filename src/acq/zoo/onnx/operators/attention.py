"""Attention as one operator, and the turning of pairs that encodes places in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.zoo.onnx.registry import Node, only, reads
from acq.zoo.onnx.values import UnreadError, Value, tensor

_HEADS = 4  # axes of [N, heads, T, d]


@reads("Attention")
def _attention(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Value | None = None, *past: Any) -> Any:
    only(node)
    if any(given is not None for given in past) or node.get("softcap", 0.0):
        raise UnreadError("has values of the past, or softcap")
    heads, groups = node.get("q_num_heads"), node.get("kv_num_heads")
    q, k, v = (_by_head(x, count) for x, count in ((query, heads), (key, groups), (value, groups)))
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scale, added = node.get("scale"), _mask(node, mask, q, k)
    y = F.scaled_dot_product_attention(q, k, v, added, scale=scale)
    return y.transpose(1, 2).flatten(2) if query.dim() < _HEADS else y


def _by_head(x: Tensor, heads: int | None) -> Tensor:
    """[N, T, heads * d] or [N, heads, T, d] as the latter."""
    if x.dim() == _HEADS:
        return x
    if x.dim() != _HEADS - 1 or not heads or x.shape[2] % heads:
        raise UnreadError(f"has {heads} heads of {x.dim()} axes")
    return torch.unflatten(x, 2, (heads, x.shape[2] // heads)).transpose(1, 2)


def _mask(node: Node, given: Value | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the products: the given mask, and that of what comes later."""
    mask = None if given is None else tensor(given, q.device)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    if node.get("is_causal", 0):
        later = torch.full((q.shape[2], k.shape[2]), -torch.inf, device=q.device).triu(1)
        mask = later if mask is None else mask + later
    return mask


@reads("RotaryEmbedding")
def _rotary_embedding(node: Node, x: Tensor, cosines: Value, sines: Value, places: Value | None = None) -> Any:
    turned = _by_head(x, node.get("num_heads"))
    size = node.get("rotary_embedding_dim", 0) or turned.shape[-1]
    cos, sin = (_of_places(tensor(table, x.device), places) for table in (cosines, sines))
    moved, rest = turned[..., :size], turned[..., size:]
    pairs = bool(node.get("interleaved", 0))
    first, second = (moved[..., 0::2], moved[..., 1::2]) if pairs else moved.chunk(2, -1)
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    found = torch.stack((real, imaginary), -1).flatten(-2) if pairs else torch.cat((real, imaginary), -1)
    found = torch.cat((found, rest), -1)
    return found.transpose(1, 2).flatten(2) if x.dim() < _HEADS else found


def _of_places(table: Tensor, places: Value | None) -> Tensor:
    """The rows [N, 1, T, d / 2] of a table for the places of tokens."""
    rows = table if places is None else F.embedding(tensor(places, table.device).long(), table)
    return rows.unsqueeze(1)
