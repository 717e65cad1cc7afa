from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from answers import ANSWERS, Scores, answering
from helpers import CLASSES, NETWORKS, SIZE, Chain, conv, images, network, student_from, student_of, traced
from torch import Tensor, nn

from acq.core.structures import flattened
from acq.network.names import name_of
from acq.network.structure import structure_of
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import float_bytes, mean_weight_bits, quantized_bytes, quantizers_off


@pytest.mark.parametrize("name", NETWORKS)
def test_error_falls_with_bits(name: str) -> None:
    """The student at 8 bits is within 5 % of the network, and nearer than the one at 3 bits."""
    x = images(32)
    with torch.no_grad():
        logits = network(name)(x)
        errors = [((student_of(name, bits)(x) - logits).norm() / logits.norm()).item() for bits in ("w8a8", "w3a3")]
    assert errors[0] < 0.05
    assert errors[0] < errors[1]


def test_modules_are_listed_in_order_by_public_name() -> None:
    """Layers have the names of the network's modules, quantizers those of the tensors that they quantize."""
    student = student_of("resnet")
    assert [name for name, _ in student.layers()][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    names = [name for name, _ in student.activations()]
    assert names[:4] == ["image", "relu", "relu_requantizer", "layer1.0.relu"]
    targets = [str(node.target) for node, _ in student.modules_in_order()]
    assert targets[:5] == ["image_quantizer", "conv1", "relu_quantizer", "relu_requantizer", "layer1.0.conv1"]


def test_size_and_classes_are_those_of_the_graph() -> None:
    """They need no preprocessing."""
    student = student_of("resnet")
    assert (student.input_size, student.output) == ((3, 16, 16), CLASSES)


def test_taps_are_the_teachers_tensors() -> None:
    """Without quantizers a tapped value is that of the traced node; with them it is quantized."""
    student, graph, x = student_of("resnet"), traced("resnet"), images(4)
    taps = ["layer1.0.bn2", "layer1.0.relu_2", "layer2.0.pad", "layer3.0.relu_2"]
    own = torch.fx.Interpreter(graph, garbage_collect_values=False)
    with torch.no_grad(), quantizers_off(student):
        own.run(x)
        logits, values = student.read(x, taps)
        assert torch.equal(logits, student(x))
        for tap in taps:
            node = next(node for node in graph.graph.nodes if name_of(node) == tap)
            torch.testing.assert_close(values[tap], own.env[node], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        _, values = student.read(x, taps)
    for tap, value in values.items():
        levels = 16 if tap == "layer3.0.relu_2" else 256  # tensors that enter an addition have 8 bits
        assert value.unique().numel() <= levels


def test_a_requantized_tensor_has_a_tap_of_its_own() -> None:
    """The tensor's own name reads the 8 stored bits, the requantizer's name the 4 bits for the layer."""
    with torch.no_grad():
        _, values = student_of("resnet").read(images(4), ["relu", "relu_requantizer"])
    assert values["relu"].unique().numel() > 16
    assert values["relu_requantizer"].unique().numel() <= 16


@pytest.mark.parametrize("tap", ["relu_99", "layer1.0.conv1"])
def test_unknown_taps_are_refused(tap: str) -> None:
    """The message names the tap; the input of a folded batch norm is none."""
    with pytest.raises(ValueError, match=f"the student has no node '{tap}'"):
        student_of("resnet").read(images(1), [tap])


def test_quantizers_off_restores_each_quantizer() -> None:
    """After the block each quantizer is as before, also when an error leaves the block."""
    student = student_of("relu6")
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    quantizers[0].enabled = False
    with contextlib.suppress(KeyError), quantizers_off(student):
        assert not any(quantizer.enabled for quantizer in quantizers)
        raise KeyError
    assert [quantizer.enabled for quantizer in quantizers] == [False] + [True] * (len(quantizers) - 1)


def test_every_parameter_is_trained() -> None:
    """One backward pass gives every weight, bias and scale a gradient that is not zero."""
    student = student_of("resnet")
    student(images(8)).square().sum().backward()
    idle = [name for name, value in student.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_copies_and_state_dicts_round_trip() -> None:
    """A deep copy, and a new build with the state dict, give the same logits bit for bit."""
    student, x, graph = student_of("squeeze-excite"), images(3), traced("squeeze-excite")
    fresh = build(graph, student.plan)
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(student)(x), student(x))
        assert torch.equal(fresh(x), student(x))


def test_a_few_steps_bring_the_student_nearer() -> None:
    """Thirty steps of distillation at 3 bits at least halve the squared error of the logits."""
    student, x = student_of("residual", "w3a3"), images(32)
    target = network("residual")(x).detach()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        error = (student(x) - target).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def test_sizes_count_packed_integers() -> None:
    """Two linear layers count float bytes, and integers at their widths with scales, biases and zero points."""
    graph = traced("two linears")
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    weights, biases = 768 * 12 + 12 * 5, 17
    assert float_bytes(student) == 4 * (weights + biases)
    assert quantized_bytes(student) == weights // 2 + 4 * biases + 4 * 17 + 5 * 2


def test_layers_in_float_count_with_32_bits() -> None:
    """Their weights are in both sizes as float32, and in the mean bits per weight."""
    student = student_of("two linears", layers={"two": "float"}, first_last_bits="same")
    weights, biases = 768 * 12 + 12 * 5, 17
    assert float_bytes(student) == 4 * (weights + biases)
    assert quantized_bytes(student) == 768 * 12 // 2 + 8 * 12 + 4 * 12 * 5 + 4 * 5 + 5
    assert mean_weight_bits(student) == pytest.approx((4 * 768 * 12 + 32 * 65) / (weights + 5))


class Normalised(nn.Module):
    """A table of places, a norm over channels, and a lower bound per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.places = nn.LayerNorm([8, 16, 16]), nn.Parameter(torch.rand(1, 8, 16, 1))
        self.least = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.norm(x) + self.places, self.least)


def test_every_weight_counts_where_it_is_used_in_float() -> None:
    """Constants of any operator are in both sizes and in the mean, so nothing that the file holds is left out."""
    model = Chain(Normalised(), nn.ReLU(), conv(8, 8))
    graph = trace(model.eval(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    layers = sum(4 * (layer.weight.numel() + len(layer.weight)) for _, layer in student.layers())
    constants = 2 * 8 * 16 * 16 + 8 * 16 + 8
    assert float_bytes(student) == layers + 4 * constants
    assert quantized_bytes(student) > 4 * constants
    weights = sum(layer.weight.numel() for _, layer in student.layers())
    assert mean_weight_bits(student) == pytest.approx((4 * weights + 32 * constants) / (weights + constants))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_student_returns_what_its_network_returns(name: str) -> None:
    """Without quantizers structure and values are the network's own; logits are those before its end."""
    model, x = answering(name), images(3)
    student = student_from(trace(model, SIZE))
    with torch.no_grad(), quantizers_off(student):
        found, wanted = student(x), model(x)
        logits = student.logits(x)
    assert list(student.outputs) == list(student.answer.names)
    for one, other in zip(flattened(found)[1], flattened(wanted)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert isinstance(wanted, Scores) or isinstance(found, tuple if isinstance(wanted, tuple) else type(wanted))
    assert logits.shape == (3, student.output.numbers)
    if name == "softmax":
        torch.testing.assert_close(logits.softmax(1), found)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "log softmax", "one sigmoid", "dict", "object", "tuple"])
def test_only_logits_and_what_follows_them_stay_in_float(name: str) -> None:
    """The head is quantized as in a network that returns scores; its output and a final softmax have no quantizer."""
    plans = {node.name: node for node in student_from(trace(answering(name), SIZE)).plan.nodes}
    head = plans["side" if "one" in name else "head"]
    assert (head.weight_bits, head.output_bits) == (8, None)
    ends = [node for node in plans.values() if "softmax" in node.operator or "sigmoid" in node.operator]
    assert [node.output_bits for node in ends] == [None] * len(ends)


class Ended(nn.Module):
    """A map or tokens, a layer without a bias, and constants that are added or multiplied behind it."""

    def __init__(self, layer: nn.Module, *constants: tuple[int, ...], tokens: bool = False, softmax: bool = False):
        super().__init__()
        self.stem, self.layer, self.tokens, self.softmax = nn.Conv2d(3, 8, 4, 4), layer, tokens, softmax
        self.constants = nn.ParameterList([torch.rand(shape) + 0.5 for shape in constants])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.layer(x.flatten(2).transpose(1, 2) if self.tokens else x)
        for place, constant in enumerate(self.constants):
            x = x * constant if place % 2 else x + constant
        return x.softmax(-1 if self.tokens else 1) if self.softmax else x


class Product(nn.Module):
    """``x @ W``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(
    ("layer", "constants", "tokens"),
    [
        (Product(), [(5,)], True),
        (nn.Linear(8, 5, bias=False), [(5,), (5,)], True),
        (nn.Sequential(nn.LayerNorm(8), Product()), [(1,), (5,), (5,)], True),
        (nn.Conv2d(8, 5, 1, bias=False), [(5, 1, 1)], False),
        (nn.Conv2d(8, 5, 1), [(1, 5, 1, 1), (5, 1, 1)], False),
        (nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)), [], False),
    ],
)
def test_features_are_a_node_of_the_student(
    layer: nn.Module, constants: list[tuple[int, ...]], tokens: bool, softmax: bool
) -> None:
    """The layer of the logits is no place for features: constants behind it become part of it."""
    graph = trace(Ended(layer, *constants, tokens=tokens, softmax=softmax).eval(), SIZE)
    features, student = structure_of(graph).features, student_from(graph, "w8a8")
    assert features is not None
    logits, values = student.read_features(images(4), name_of(features.node))
    assert values.shape[1:] == features.node.meta["val"].shape[1:]
    assert logits.shape[0] == 4
