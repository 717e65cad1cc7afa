from __future__ import annotations

import pytest
import torch
from helpers import SIZE, Chain, conv, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.operators import Role
from acq.network.trace import trace
from acq.quantization.roles import LayerWidth, Roles, assign_roles


def roles_of(name: str, layers: dict[str, LayerWidth] | None = None) -> tuple[Roles, dict[str, Role], dict[str, str]]:
    """The roles and notes of a tiny network by name."""
    found = assign_roles(traced(name), layers or {})
    names = {node: name_of(node) for node in found.nodes}
    return (
        found,
        {names[node]: role for node, role in found.by_node.items()},
        {names[node]: note for node, note in found.notes.items()},
    )


def test_roles_follow_from_operators() -> None:
    """A batch norm behind a layer is folded into it; movement, additions and rectifiers are recognised."""
    _, roles, notes = roles_of("resnet")
    assert roles["image"] is Role.IMAGE
    assert roles["sym_size"] is Role.SHAPE
    assert roles["layer1.0.conv1"] is Role.CONVOLUTION
    assert (roles["layer1.0.bn1"], notes["layer1.0.bn1"]) == (Role.FOLD, "folded into layer1.0.conv1")
    assert roles["layer2.0.pad"] is Role.MOVE
    assert roles["layer1.0.add"] is Role.ADD
    assert roles["layer1.0.relu_2"] is Role.RECTIFIER
    assert roles["linear"] is Role.LINEAR


class PadsWithOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1), value=1.0)


class Pools(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.size)


class Divides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.mean(1, keepdim=True) + 3)


class ComputedWeight(nn.Module):
    """Its weight is computed from the images, although they do not change it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (1 + 0 * x.mean((0, 2, 3))).view(8, 1, 1, 1), groups=8)


@pytest.mark.parametrize(
    ("module", "operator", "role", "note"),
    [
        (PadsWithOne(), "middle.0.pad", Role.PAD, ""),
        (Pools((32, 16)), "middle.0.adaptive_avg_pool2d", Role.MOVE, "each window has one value"),
        (Pools((24, 16)), "middle.0.adaptive_avg_pool2d", Role.POOL, ""),
        (Divides(), "middle.0.div", Role.FLOAT, "it divides by computed values"),
        (ComputedWeight(), "middle.0.conv2d", Role.FLOAT, "its weight is computed, not constant"),
        (nn.BatchNorm2d(8), "middle.0", Role.RESCALE, "becomes a depthwise 1 x 1 convolution"),
    ],
    ids=["pad", "repetition", "pool", "division", "computed weight", "batch norm"],
)
def test_roles_depend_on_arguments(module: nn.Module, operator: str, role: Role, note: str) -> None:
    """The same operator has another role where its arguments do not allow integers."""
    model = Chain(module, nn.ReLU())
    model.stem = nn.Sequential(conv(3, 8), nn.ReLU())
    found = assign_roles(trace(model.eval(), SIZE), {})
    (node,) = [node for node in found.nodes if name_of(node) == operator]
    assert (found.of(node), found.notes[node]) == (role, note)


def test_a_layer_in_float_takes_its_batch_norm_along() -> None:
    """Both are float with a note; they still count as a layer, so the second layer does not become the first."""
    found, roles, notes = roles_of("resnet", {"conv1": "float"})
    assert (roles["conv1"], notes["conv1"]) == (Role.FLOAT, "kept in floating point")
    assert (roles["bn1"], notes["bn1"]) == (Role.FLOAT, "follows conv1, which is kept in floating point")
    assert roles["layer1.0.bn1"] is Role.FOLD
    assert {name_of(node) for node in found.kept} == {"conv1"}
    assert {name_of(node) for node in found.float_norms} == {"bn1"}
    assert "conv1" in {name_of(node) for node in found.layers}


def test_patterns_match_layers_and_later_entries_win() -> None:
    """A shell pattern sets every layer that it matches; a batch norm that is a layer of its own has a name too."""
    found, _, _ = roles_of("resnet", {"layer*": 3, "layer2.*": "float", "layer2.0.conv2": 5, "linear": 6})
    assert {name_of(node): width for node, width in found.widths.items()} == {
        "layer1.0.conv1": 3,
        "layer1.0.conv2": 3,
        "layer2.0.conv2": 5,
        "layer3.0.conv1": 3,
        "layer3.0.conv2": 3,
        "linear": 6,
    }
    assert {name_of(node) for node in found.kept} == {"layer2.0.conv1"}
    _, roles, _ = roles_of("pre-activation", {"middle.?.bn": "float"})
    assert roles["middle.0.bn"] is roles["middle.1.bn"] is Role.FLOAT


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            {"layer1.0.conv11": 4},
            "'layer1.0.conv11' matches no layer with weights; the nearest names are: layer1.0.conv1, ",
        ),
        ({"conv2d_1": 4}, "'conv2d_1' matches no layer"),
        ({"layer9.*": 4}, r"'layer9\.\*' matches no layer with weights; the nearest names are: "),
        ({"layer1.0.bn1": 4}, "'layer1.0.bn1' matches no layer"),
        ({"conv1": 1}, r"bits out of range: layers\.conv1 1; give 2 to 8, or float"),
        ({"conv*": 9}, r"bits out of range: layers\.conv\* 9"),
        ({"conv1": "half"}, r"bits out of range: layers\.conv1 half"),
    ],
)
def test_wrong_layers_are_refused(layers: dict[str, LayerWidth], words: str) -> None:
    """The message has the nearest names of layers with weights, or the widths that there are."""
    with pytest.raises(RequestError, match=words):
        assign_roles(traced("resnet"), layers)


def test_gates_of_their_own_input_are_found() -> None:
    """The tangent of ``x * tanh(x)`` is one, the sigmoid of squeeze-and-excitation is none."""
    for name, end, gated in (("gate product", ".tanh", True), ("squeeze-excite", ".sigmoid", False)):
        found = assign_roles(traced(name), {})
        (gate, *_) = [node for node in found.nodes if name_of(node).endswith(end)]
        assert found.is_gate_of_own_input(gate) is gated


def test_a_trace_in_training_mode_keeps_its_batch_norm_in_float() -> None:
    """Statistics of the batch are not constant."""
    graph = trace(Chain(conv(8, 8)).eval(), SIZE)
    norm = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.batch_norm.default)
    norm.args = (*norm.args[:5], True, *norm.args[6:])
    found = assign_roles(graph, {})
    assert (found.of(norm), found.notes[norm]) == (Role.FLOAT, "its statistics are not constant")


class LargerBranch(nn.Module):
    """The larger of two branches, of which the second is read elsewhere too if it is shared."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.one, self.two, self.shared = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), shared

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        one, two = self.one(x), self.two(x)
        largest = torch.maximum(one, two)
        return largest + torch.tanh(two) if self.shared else largest


@pytest.mark.parametrize("shared", [False, True])
def test_inputs_of_a_maximum_are_quantized_behind_it(shared: bool) -> None:
    """Rounding is monotone, so only an input that others read needs a quantizer of its own."""
    found = assign_roles(trace(Chain(LargerBranch(shared)).eval(), SIZE), {})
    nodes = {name_of(node): node for node in found.nodes}
    largest = nodes["middle.0.maximum"]
    assert found.of(largest) is Role.MAXIMUM
    assert found.joins_consumer(nodes["middle.0.one"]) is largest
    assert found.joins_consumer(nodes["middle.0.two"]) is (None if shared else largest)
