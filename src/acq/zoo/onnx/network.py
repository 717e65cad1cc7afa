"""An ONNX graph as an ``nn.Module`` that torch.export takes whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acq.errors import RequestError
from acq.zoo.onnx.batches import Freed
from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.naming import add_at, path_of
from acq.zoo.onnx.refusal import label
from acq.zoo.onnx.registry import OPERATORS, Node, constant_value
from acq.zoo.onnx.values import UnreadError, Value

_CPU = torch.device("cpu")
_BUFFERS = ("", "running_mean", "running_var")


class OnnxNetwork(nn.Module):
    """A graph as a network: images [N, C, H, W] to the file's outputs by name.

    Each node is a module under the name that the file has for it.

    Args:
        graph: The graph; what it computes from constants alone is folded.
        channels_last: Whether the graph takes images [N, H, W, C].
        fixed: The number of images that the file is made for; 1 where it is made for any.
        changes: What changes in nodes where there are other numbers of images.

    Attributes:
        remedy: The way out where the graph would fit one number of images.
    """

    remedy = "export the file for one image at once, or with constants folded"

    def __init__(
        self, graph: Graph, channels_last: bool = False, fixed: int = 1, changes: Mapping[Node, Freed] | None = None
    ) -> None:
        super().__init__()
        self._entry, self._exits, self._channels_last, self._fixed = graph.entry, graph.exits, channels_last, fixed
        self._operations: list[Operation] = []
        shared: dict[tuple[str, bool], Value] = {}  # a constant that several nodes read is one tensor
        for node in graph.nodes:
            operation = Operation(node, _constants(graph, node, shared), (changes or {}).get(node))
            add_at(self, path_of(node), operation)
            self._operations.append(operation)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The values that the graph returns, by name."""
        return self.values(images, self._exits)

    def values(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Values of the graph by name, also inner ones.

        Raises:
            RequestError: A node needs the number of images as a plain number, and that is a symbol.
        """
        values: dict[str, Any] = {self._entry: images.permute(0, 2, 3, 1) if self._channels_last else images}
        for operation in self._operations:
            try:
                found = operation(values, images.shape[0], self._fixed)
            except UnreadError as error:
                raise RequestError(f"{label(operation.node)} {error}; {self.remedy}") from error
            values.update(zip(operation.node.outputs, found, strict=False))
        return {name: values[name] for name in names}


class Operation(nn.Module):
    """A node with its own constants: weights are parameters, other floats buffers, integers plain numbers.

    Args:
        node: The node.
        constants: Its inputs that are constants, by place.
        freed: What changes in the inputs where there are other numbers of images than the file has.
    """

    def __init__(self, node: Node, constants: Mapping[int, Value], freed: Freed | None = None) -> None:
        super().__init__()
        self.node = node
        self._freed = freed
        self._numbers = {place: value for place, value in constants.items() if not isinstance(value, Tensor)}
        self._names: dict[int, str] = {}
        for place, value in constants.items():
            if isinstance(value, Tensor):
                weight = OPERATORS[node.kind].weight_at(place)
                self._names[place] = weight or f"constant_{place}"
                if isinstance(value, nn.Parameter):
                    self.register_parameter(self._names[place], value)
                else:
                    self.register_buffer(self._names[place], value)

    def forward(self, values: Mapping[str, Value], count: Any, fixed: int) -> tuple[Any, ...]:
        """Compute the node's outputs.

        Args:
            values: Values by name.
            count: The number of images.
            fixed: The number of images that the file is made for.
        """
        inputs = [self._input(place, name, values) for place, name in enumerate(self.node.inputs)]
        if self._freed is not None:
            inputs = self._freed.applied(self.node, inputs, count, fixed)
        return OPERATORS[self.node.kind](self.node, inputs)

    def _input(self, place: int, name: str, values: Mapping[str, Value]) -> Value | None:
        if place in self._names:
            found: Tensor = getattr(self, self._names[place])
            return found
        if place in self._numbers:
            return self._numbers[place]
        return values[name] if name else None


def _constants(graph: Graph, node: Node, shared: dict[tuple[str, bool], Value]) -> dict[int, Value]:
    """A node's inputs that are constants, by place; weights as parameters."""
    found: dict[int, Value] = {}
    operator = OPERATORS[node.kind]
    for place, name in enumerate(node.inputs):
        if name not in graph.constants:
            continue
        is_weight = operator.weight_at(place) not in _BUFFERS
        if (name, is_weight) not in shared:
            value = constant_value(operator, place, graph.constants[name], _CPU)
            weight = is_weight and isinstance(value, Tensor) and value.is_floating_point()
            shared[name, is_weight] = nn.Parameter(value, requires_grad=False) if weight else value  # type: ignore[arg-type]
        found[place] = shared[name, is_weight]
    return found
