"""Lists of tensors, as torch's exporter writes the pieces of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acq.zoo.onnx.registry import Node, reads
from acq.zoo.onnx.values import UnreadError, Value, integer, integers, plain


@reads("SplitToSequence")
def _split_to_sequence(node: Node, x: Tensor, sizes: Value | None = None) -> Any:
    axis, keeps = node.get("axis", 0), bool(node.get("keepdims", 1))
    if sizes is None:
        pieces = torch.split(x, 1, axis)
        return [piece if keeps else piece.squeeze(axis) for piece in pieces]
    given = plain(integers(sizes))
    return list(torch.split(x, given if sizes.ndim else given[0], axis))


@reads("SequenceConstruct")
def _sequence(_: Node, *values: Tensor) -> Any:
    return list(values)


@reads("SequenceAt")
def _item(_: Node, sequence: list[Tensor], place: Value) -> Any:
    return _listed(sequence)[plain([integer(place)])[0]]


@reads("ConcatFromSequence")
def _concat_sequence(node: Node, sequence: list[Tensor]) -> Any:
    join = torch.stack if node.get("new_axis", 0) else torch.cat
    return join(_listed(sequence), node.get("axis", 0))


def _listed(value: Any) -> list[Tensor]:
    if not isinstance(value, list):
        raise UnreadError("takes no sequence of tensors")
    return value
