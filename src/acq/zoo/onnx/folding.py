"""What a graph computes from constants alone, computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq.files.limits import FOLDED_VALUES
from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.refusal import refused
from acq.zoo.onnx.registry import OPERATORS, Node, constant_value
from acq.zoo.onnx.values import UnreadError, Value

_CPU, _META = torch.device("cpu"), torch.device("meta")

_LISTS = ("SplitToSequence", "SequenceConstruct")  # what they return is no array


def folded(graph: Graph) -> Graph:
    """The graph without nodes that read no image, and with their values as constants.

    Raises:
        RequestError: A node cannot be computed, the constants would take much memory, or a norm of images is in
            training mode.
    """
    constants, nodes, budget = dict(graph.constants), [], FOLDED_VALUES
    for node in graph.nodes:
        if node.kind not in _LISTS and all(name in constants for name in node.inputs if name):
            with refused(node):
                arrays = _computed(node, [constants.get(name) for name in node.inputs], budget)
            budget -= sum(array.size for array in arrays)
            constants.update(zip(node.outputs, arrays, strict=False))
        else:
            with refused(node):
                _require_inference(node)
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _require_inference(node: Node) -> None:
    """Refuse a norm with the statistics of its input: those of constants are constant, those of images are not."""
    if node.get("training_mode", 0):
        raise UnreadError("is in training mode")


def _computed(node: Node, constants: Sequence[NDArray[Any] | None], budget: int) -> list[NDArray[Any]]:
    operator = OPERATORS[node.kind]

    def on(device: torch.device) -> list[Value | None]:
        found = enumerate(constants)
        return [None if value is None else constant_value(operator, at, value, device) for at, value in found]

    with torch.no_grad():
        if any(isinstance(value, Tensor) for value in on(_META)):  # its memory is known before it is taken
            with torch.device(_META):
                sizes = [math.prod(value.shape) for value in operator(node, on(_META))]
            if sum(sizes) > budget:
                raise UnreadError(f"makes all constants larger than {FOLDED_VALUES:,} numbers")
        results = operator(node, on(_CPU))
    return [np.asarray(result.numpy() if isinstance(result, Tensor) else result) for result in results]
