"""The student: a quantized network that runs its own graph. ``acq.quantization.build`` makes one from a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from acq.core.interpreter import KeepingInterpreter
from acq.core.outputs import Answer, Output
from acq.core.values import Preprocessing
from acq.errors import nearest
from acq.network.names import name_of
from acq.network.outputs import returned_nodes
from acq.quantization.layers import QuantLayer
from acq.quantization.node_plan import Plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer

_FLOAT_BITS = 32
_QUANTIZER_BYTES = 5  # a float32 scale and a zero point of one byte


class Student(nn.Module):
    """A quantized network. It runs ``graph`` node by node; its layers and quantizers are its submodules.

    The graph is interpreted and never compiled, so a graph from a file is data and not code. Each node has its public
    name in ``meta["name"]`` and its shape in ``meta["shape"]``. A node of the teacher keeps its name. The quantizer of
    a tensor is the node behind it, ``<name>_quantizer``. Where some consumers take fewer bits than are stored,
    ``<name>_requantizer`` follows.

    Args:
        graph: The graph.
        plan: The plan that it follows.
        answer: What it returns, and how it decides.
        preprocessing: How its images are normalised, if known.
    """

    def __init__(self, graph: fx.Graph, plan: Plan, answer: Answer, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.plan = plan
        self.answer = answer
        self.preprocessing = preprocessing

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        image = next(node for node in self.graph.nodes if node.op == "placeholder")
        channels, height, width = image.meta["shape"][1:]
        return channels, height, width

    @property
    def output(self) -> Output:
        """How its logits decide."""
        return self.answer.output

    @property
    def outputs(self) -> Mapping[str, fx.Node]:
        """The node of each returned tensor by name; ``logits`` is the name of a tensor alone."""
        return dict(zip(self.answer.names, returned_nodes(self.graph), strict=True))

    def forward(self, images: Tensor) -> Any:
        """Normalised images [N, C, H, W] to what the network returns for them."""
        return self.answer.rebuilt(self.returned(images))

    def returned(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the network returns, in the order of ``outputs``."""
        return tuple(KeepingInterpreter(self, self.graph).run(images))

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] to logits [N, L]: before a softmax or sigmoid that ends the network."""
        return self.read(images, ())[0]

    def read(self, images: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one forward pass and keep intermediate values.

        Args:
            images: Normalised images [N, C, H, W].
            taps: Public names of nodes.

        Returns:
            The logits [N, L] of all tensors that count, and the value of each tap, quantized where it has a quantizer.

        Raises:
            ValueError: The student has no node of that name. The input of a folded batch norm is no node.
        """
        nodes = {tap: self._tapped(tap) for tap in taps}
        logits = [self._tapped(name) for name in self.answer.logits]
        interpreter = KeepingInterpreter(self, self.graph, (*logits, *nodes.values()))
        interpreter.run(images)
        kept = interpreter.kept
        return self.output.flat([kept[node] for node in logits]), {tap: kept[node] for tap, node in nodes.items()}

    def read_features(self, images: Tensor, tap: str | None) -> tuple[Tensor, Tensor]:
        """The logits [N, L] of one forward pass, and the values of one tap; [N, 0] where there is none."""
        logits, values = self.read(images, () if tap is None else (tap,))
        return logits, logits.new_empty(len(logits), 0) if tap is None else values[tap]

    def modules_in_order(self) -> Iterator[tuple[fx.Node, nn.Module]]:
        """The nodes that run a layer or a quantizer, each with its module, in order of execution."""
        for node in self.graph.nodes:
            if node.op == "call_module":
                yield node, self.get_submodule(str(node.target))

    def layers(self) -> Iterator[tuple[str, QuantLayer]]:
        """The layers with quantized weights by public name, in order of execution."""
        for _, module in self.modules_in_order():
            if isinstance(module, QuantLayer):
                yield module.name, module

    def activations(self) -> Iterator[tuple[str, ActivationQuantizer]]:
        """The activation quantizers by the name of the tensor that they quantize, in order of execution."""
        for _, module in self.modules_in_order():
            if isinstance(module, ActivationQuantizer):
                yield module.name, module

    def _tapped(self, tap: str) -> fx.Node:
        nodes: dict[str, fx.Node] = {name_of(node): node for node in self.graph.nodes}
        for node, module in self.modules_in_order():
            if isinstance(module, ActivationQuantizer):
                nodes[module.name] = node
        if tap not in nodes:
            raise ValueError(f"the student has no node {tap!r}{nearest(tap, nodes)}")
        return nodes[tap]


@contextmanager
def quantizers_off(student: nn.Module) -> Iterator[None]:
    """Disable every quantizer, so that values pass through in floating point. On exit each one is as it was."""
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    before = [quantizer.enabled for quantizer in quantizers]
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        yield
    finally:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled


def float_bytes(student: Student) -> int:
    """Bytes of the weights, biases and other constants as float32."""
    return _constant_bytes(student) + sum(
        4 * (layer.weight.numel() + _bias_count(layer)) for _, layer in student.layers()
    )


def quantized_bytes(student: Student) -> int:
    """Bytes as deployed.

    Weights are packed to their width. Biases are int32, scales of weights, activations and channels float32, zero
    points one byte each. Layers in floating point and other constants are float32.
    """
    total = _constant_bytes(student)
    for _, quantizer in student.activations():
        scales = 0 if quantizer.channel_scale is None else quantizer.channel_scale.numel()
        total += _QUANTIZER_BYTES + 4 * scales
    for _, layer in student.layers():
        weights = layer.weight_quantizer
        packed = (layer.weight.numel() * weights.bits + 7) // 8
        total += packed + 4 * weights.log_scale.numel() + 4 * _bias_count(layer)
    return total


def mean_weight_bits(student: Student) -> float:
    """Mean bits per weight over all layers; a constant that is used in floating point has 32."""
    counts = [(layer.weight.numel(), layer.weight_quantizer.bits) for _, layer in student.layers()]
    counts += [(value.numel(), _FLOAT_BITS) for value in _constants(student) if value.is_floating_point()]
    return sum(count * bits for count, bits in counts) / sum(count for count, _ in counts)


def _bias_count(layer: QuantLayer) -> int:
    return layer.bias.numel() if layer.bias is not None else 0


def _constant_bytes(student: Student) -> int:
    return sum(value.numel() * value.element_size() for value in _constants(student))


def _constants(student: Student) -> Iterator[Tensor]:
    """What operators that are no quantized layers take from the network: weights of layers in floating point, and more.

    A constant that several nodes name counts once.
    """
    for target in {str(node.target) for node in student.graph.nodes if node.op == "get_attr"}:
        yield student.get_buffer(target)
