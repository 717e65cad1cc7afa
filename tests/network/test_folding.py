from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, Chain, conv, images
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.network import folding
from acq.network.constants import constant
from acq.network.names import name_of
from acq.network.operators import is_constant, operator_of
from acq.network.trace import trace
from acq.quantization.roles import assign_roles


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Cosine(nn.Module):
    """Pooled features against class directions of length one, in front of the five scores."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        scores = F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.weight))
        return x * scores[..., None, None]


class Coordinates(nn.Module):
    """Maps of rows and columns, made in every forward pass and joined to the features."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand(n, 1, h, w)
        return torch.cat([x[:, :6], rows, columns], 1)


class Waves(nn.Module):
    """A table of sines and cosines for the places of the map."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[2] * x.shape[3])[:, None] * torch.exp(-torch.arange(4) * math.log(100.0) / 4)
        table = torch.cat([places.sin(), places.cos()], 1)
        return x + table.t().view(1, 8, x.shape[2], x.shape[3])


class Masked(nn.Module):
    """A mask from a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.index[:, None] >= self.index, x, torch.zeros(()))


class Scaled(nn.Module):
    """A number that is read out of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.item() + float(torch.sqrt(torch.tensor(2.0)))


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1))


def old_spectral_norm() -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
    "old weight norm": old_weight_norm,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)),
    "old spectral norm": old_spectral_norm,
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
    "standardized": lambda: Standardized(8, 8, 3, padding=1),
}
MAPS: dict[str, Callable[[], nn.Module]] = {
    "class directions": Cosine,
    "coordinates": Coordinates,
    "waves": Waves,
    "mask": Masked,
    "number": Scaled,
}


def computed(graph: fx.GraphModule) -> list[str]:
    """Operators whose inputs are all constants, or that have none."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [operator_of(node) for node in calls if not node.all_input_nodes or is_constant(node)]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_computed_weight_becomes_that_of_its_layer(kind: str) -> None:
    """The layer has the name of its module and a constant weight, and the batch norm behind it folds."""
    torch.manual_seed(0)
    model = Chain(nn.Sequential(LAYERS[kind](), nn.BatchNorm2d(8), nn.ReLU())).eval()
    graph, x = trace(model, SIZE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    nodes = {name_of(node): node for node in graph.graph.nodes}
    weight = nodes["middle.0.0"].args[1]
    assert name_of(weight) == "middle.0.0.weight"
    assert constant(graph, weight) is not None
    assert computed(graph) == []
    roles = assign_roles(graph, {})
    assert roles.by_node[nodes["middle.0.1"]] == "fold"


@pytest.mark.parametrize("kind", MAPS)
def test_what_no_image_changes_is_computed_once(kind: str) -> None:
    """No operator of the graph reads constants alone, and the graph gives the network's numbers."""
    torch.manual_seed(0)
    model = Chain(nn.ReLU(), MAPS[kind](), conv(8, 8)).eval()
    graph = trace(model, SIZE)
    assert computed(graph) == []
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(graph(images(count)), model(images(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x + torch.ones(x.shape[0], 8, 1, 1),
        lambda x: x + x.new_full(x.shape, 0.5),
        lambda x: x + torch.full_like(x, 2.0),
        lambda x: torch.where(torch.zeros(len(x), 1, 1, 1, dtype=torch.bool), 0, x),
    ],
)
def test_filled_tensors_of_the_batch_are_one_number(part: Callable[[Tensor], Tensor]) -> None:
    """A tensor that is filled in every pass is an expanded constant, so that it is where the network is."""

    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return part(x)

    model = Chain(nn.ReLU(), Filled()).eval()
    graph = trace(model, SIZE)
    assert not [node for node in graph.graph.nodes if str(node.target).startswith("aten.full")]
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(graph(images(count)), model(images(count)))


def test_only_what_is_read_is_kept() -> None:
    """The parameters behind a folded weight are gone, all others stay."""
    model = Chain(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))).eval()
    names = set(trace(model, SIZE).state_dict())
    assert "middle.0.weight" in names
    assert not [name for name in names if "parametrizations" in name]
    assert {name for name in names if not name.startswith("middle")} == {
        name for name in model.state_dict() if not name.startswith("middle")
    }


def test_a_layer_that_is_called_twice_has_one_weight() -> None:
    """The weight is computed in each call, and both calls read the same constant."""
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    graph = trace(Chain(layer, nn.ReLU(), layer).eval(), SIZE)
    calls = [node for node in graph.graph.nodes if name_of(node) in ("middle.0", "middle.0_2")]
    assert [str(node.args[1].target) for node in calls] == ["middle.0.weight"] * 2


def test_a_weight_that_is_also_read_raw_keeps_its_name() -> None:
    """The folded constant takes another name when the parameter itself is still read."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight) + F.conv2d(x, self.weight * 2)

    model = Chain(Twice()).eval()
    graph, x = trace(model, SIZE), images(2)
    names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr" and "middle" in str(node.target)}
    assert names == {"middle.0.weight", "middle.0.weight_2"}
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_constants_grow_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be much larger than its sources stays computed, and the numbers are the same."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.shift * 2).repeat(1, 1, 16, 16)

    monkeypatch.setattr(folding, "FOLDED_VALUES", 1000)
    model = Chain(Repeated()).eval()
    graph, x = trace(model, SIZE), images(2)
    assert computed(graph) == ["aten.repeat.default"]
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
