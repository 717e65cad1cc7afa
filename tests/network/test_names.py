from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, Head, Residual, conv, traced
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.trace import trace


def names(graph: fx.GraphModule, *operators: str) -> list[str]:
    """Names of the nodes that compute something, in order; only of the given operators, if there are any."""
    found = [(name_of(node), str(node.target)) for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name, target in found if not operators or target.split(".")[1] in operators]


def names_in(model: nn.Module, *operators: str) -> list[str]:
    return names(trace(model.eval(), SIZE), *operators)


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))


class Homonyms(nn.Module):
    """Operators that run before modules of the same name, and a kernel that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.relu, self.conv2d, self.image = nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.image(self.conv2d(F.relu(F.conv2d(x, self.kernel)))))


class Outermost(nn.Module):
    """A network whose own layers have the names of the graph's input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.output = nn.Conv2d(3, 8, 1), Head(8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.output(self.image(pixels))


class Dotted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        setattr(self, "a.b", nn.Conv2d(3, 8, 1))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(getattr(self, "a.b")(x))


def test_a_layer_has_the_name_of_its_module() -> None:
    """Convolutions and linear layers are named by the path that ``named_modules`` gives."""
    graph = traced("resnet")
    modules = [name for name, part in NETWORKS["resnet"]().named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert names(graph, "conv2d", "linear") == modules


def test_a_module_of_torch_has_its_own_name() -> None:
    """Batch norms, rectifiers and pools that are modules are named by their path."""
    graph = traced("relu6")
    assert names(graph, "batch_norm") == ["stem.1", "middle.1.1"]
    assert names(graph, "hardtanh") == ["middle.0", "middle.2"]


def test_an_operator_has_the_name_of_its_block() -> None:
    """A function is named by the block that calls it and by its operator; a number tells two of them apart."""
    graph = traced("residual in place")
    assert names(graph, "relu", "add") == [
        *("middle.0.relu", "middle.0.add", "middle.0.relu_2"),
        *("middle.1.relu", "middle.1.add", "middle.1.relu_2"),
    ]


def test_a_sequential_network_has_numbers() -> None:
    """Parts of a plain ``nn.Sequential`` are named by their position, whatever they are."""
    model = nn.Sequential(*conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    graph = trace(model.eval(), SIZE)
    assert [name for name in names(graph) if name.isdigit()] == list("012345")


def test_a_function_of_the_network_itself_has_no_block() -> None:
    """Outside of all blocks the operator alone is the name."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x) + 1)

    assert names_in(Bare(), "relu", "add") == ["relu", "add"]


def test_a_block_that_runs_twice_is_numbered() -> None:
    """The second run of a block has the names of the first, with a number."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = conv(3, 8), Residual(False), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(self.stem(x))))

    found = names_in(Twice(), "conv2d", "batch_norm", "add")
    first = ["block.block.0", "block.block.1", "block.add"]
    assert found == ["stem.0", "stem.1", *first, *(f"{name}_2" for name in first)]


def test_layers_that_share_a_weight_share_a_name() -> None:
    """A shared weight has one owner, and each further layer with it has the owner's name and a number."""
    first, second = names_in(Chain(Tied()), "conv2d")[1:]
    assert first in ("middle.0.one", "middle.0.two")
    assert second == f"{first}_2"
    assert names(traced("same padding"), "conv2d")[2:] == ["middle.0.shared", "middle.0.shared_2"]


def test_a_layer_keeps_its_name_whatever_runs_before_it() -> None:
    """Settings name layers, so an operator or an input of the same name gets the number."""
    assert names_in(Chain(Homonyms()), "conv2d") == [
        *("stem.0", "middle.0.conv2d_2"),
        *("middle.0.conv2d", "middle.0.image"),
    ]
    graph = trace(Outermost().eval(), SIZE)
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    assert (name_of(image), names(graph, "conv2d")) == ("image_2", ["image"])


def test_input_and_output_have_fixed_names() -> None:
    """They do not depend on the argument's name in ``forward``."""
    for name in ("resnet", "residual"):
        nodes = list(traced(name).graph.nodes)
        assert [name_of(node) for node in nodes if node.op == "placeholder"] == ["image"]
        assert name_of(nodes[-1]) == "output"


@pytest.mark.parametrize("name", ["resnet", "residual in place", "shuffle", "squeeze-excite", "same padding", "pools"])
def test_names_are_unique(name: str) -> None:
    """No two nodes of a network share a name, and none has torch's own mark of a repeated call."""
    nodes = list(traced(name).graph.nodes)
    assert Counter(map(name_of, nodes)).most_common(1)[0][1] == 1
    assert not any("@" in name_of(node) for node in nodes)


def test_a_module_whose_own_name_has_a_dot_is_refused() -> None:
    """Such a name cannot be told from a path; torch does not export it, and the message is one line."""
    with pytest.raises(RequestError, match="cannot be traced") as caught:
        names_in(Dotted())
    assert "\n" not in str(caught.value)


def test_keys_of_containers_are_names() -> None:
    """Keys of a ``ModuleDict`` and positions in a ``ModuleList`` are parts of the path."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a-b": nn.Conv2d(3, 8, 1), "3": nn.ModuleList([nn.Conv2d(8, 8, 1)])})
            self.head = Head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.parts["3"][0](self.parts["a-b"](x)))  # type: ignore[index]

    assert names_in(Kept(), "conv2d") == ["parts.a-b", "parts.3.0"]


def test_a_module_of_several_operators_names_each() -> None:
    """A norm of places between two permutations, attention and a padded convolution are modules of many operators."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.pad = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.pad(x + self.mix(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape))

    found = names_in(Chain(nn.ReLU(), Attention()))
    assert {"middle.0", "middle.1.mix.bmm", "middle.1.pad.pad", "middle.1.pad"} <= set(found)
    assert not [name for name in found if name.startswith("middle.1.mix_")]
