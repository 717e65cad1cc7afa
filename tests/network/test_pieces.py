from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, Applied, settled
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from acq.network.operators import operator_of
from acq.network.pieces import join_pieces
from acq.network.trace import trace

CUBE, ONE = math.sqrt(2 / math.pi), torch.ones(())
ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "hard sigmoid": ("hardsigmoid", lambda x: F.relu6(x + 3) / 6),
    "hard sigmoid by a sixth": ("hardsigmoid", lambda x: 0.16666667 * (3 + x).clamp(0, 6)),
    "hard sigmoid of a line": ("hardsigmoid", lambda x: (x / 6 + 0.5).clamp(0, 1)),
    "hard sigmoid of two bounds": ("hardsigmoid", lambda x: (x * 0.166667 + 0.5).clamp_max(1).clamp_min(0)),
    "hard swish": ("hardswish", lambda x: x * F.relu6(x + 3) / 6),
    "hard swish from behind": ("hardswish", lambda x: F.hardtanh(x + 3.0, 0, 6) / 6.0 * x),
    "hard swish of a third": ("hardswish", lambda x: (x * 0.16666667) * (x + 3).clamp(0, 6)),
    "hard swish of a whole gate": ("hardswish", lambda x: F.hardsigmoid(x) * x),
    "hard swish of relu": ("hardswish", lambda x: x * (x + 3).relu().clamp_max(6) * (1 / 6)),
    "sigmoid": ("sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
    "sigmoid as exporters write it": ("sigmoid", lambda x: torch.reciprocal(torch.exp(x * -1.0) + 1.0)),
    "sigmoid of a quotient": ("sigmoid", lambda x: ONE / (1 + (-x).exp())),
    "sigmoid of two exponentials": ("sigmoid", lambda x: (e := x.exp()) / (e + 1)),
    "softmax": ("softmax", lambda x: (e := torch.exp(x)) / e.sum(1, keepdim=True)),
    "softmax without overflow": (
        "softmax",
        lambda x: (e := torch.exp(x - x.amax(-1, keepdim=True))) / e.sum(-1, keepdim=True),
    ),
    "softmax less the first of two results": (
        "softmax",
        lambda x: (e := torch.exp(x - x.max(1, keepdim=True)[0])) * (1 / e.sum([1], keepdim=True)),
    ),
    "softmax less the greatest of all": ("softmax", lambda x: (e := torch.exp(x - x.max())) / e.sum(1, keepdim=True)),
    "softmax less the greatest of an image": (
        "softmax",
        lambda x: (e := torch.exp(x - x.amax((1, 2, 3), keepdim=True))) / e.sum(1, keepdim=True),
    ),
    "silu of exponentials": ("silu", lambda x: x / (1 + torch.exp(-x))),
    "silu of a sigmoid in pieces": ("silu", lambda x: x * (1 / (1 + torch.exp(-x)))),
    "silu": ("silu", lambda x: x * torch.sigmoid(x)),
    "silu from behind": ("silu", lambda x: x.sigmoid() * x),
    "mish": ("mish", lambda x: x * torch.tanh(F.softplus(x))),
    "gelu": ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu as exporters write it": ("gelu", lambda x: x * (torch.erf(x / 1.4142135) + 1.0) * 0.5),
    "gelu of a product": ("gelu", lambda x: (torch.erf(x * 0.70710677) * 0.5 + 0.5) * x),
    "tanh": ("gelu", lambda x: 0.5 * x * (1 + torch.tanh(CUBE * (x + 0.044715 * torch.pow(x, 3))))),
    "tanh of products": ("gelu", lambda x: x * (1 + torch.tanh(x * 0.7978846 * (1 + 0.044715 * x * x))) * 0.5),
}


class Channels(nn.Module):
    """A layer norm of the last axis in pieces; ``style`` is how its parts are written."""

    def __init__(self, style: str, gains: bool = True) -> None:
        super().__init__()
        self.style, self.gains = style, gains
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        mean = x.mean(-1, keepdim=True)
        apart = x - mean
        if self.style == "power":
            y = apart / torch.sqrt(apart.pow(2).mean(-1, keepdim=True) + 1e-5)
        elif self.style == "product":
            y = apart * torch.rsqrt(1e-5 + (apart * apart).mean([3], True))
        elif self.style == "variance":
            y = apart / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        else:
            y = torch.reciprocal(((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt()) * apart
        y = self.weight * y + self.bias if self.gains else y
        return y.permute(0, 3, 1, 2)


STYLES = ("power", "product", "variance", "reciprocal")


def joined(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[str], Tensor]:
    """The operators of a function whose pieces are joined, and its value then."""
    graph = make_fx(function)(x)
    graph.requires_grad_(False)
    graph.graph.eliminate_dead_code()
    join_pieces(graph)
    graph.recompile()
    return [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"], graph(x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_function_in_pieces_is_one_operator(name: str) -> None:
    """It is found in either order of operands, with constants of few digits, and has the values of the pieces."""
    wanted, function = ACTIVATIONS[name]
    x = 3 * torch.randn(2, 8, 4, 4)
    names, found = joined(function, x)
    assert names == [wanted]
    torch.testing.assert_close(found, function(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.relu6(x + 3) / 5,
        lambda x: x * F.relu6(x + 2) / 6,
        lambda x: x * (x + 3).clamp(0, 5) / 6,
        lambda x: (x + 3).clamp_min(0) / 6,
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * torch.sigmoid(x + 1),
        lambda x: 2 * x * torch.sigmoid(x),
        lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (1 + torch.erf(x)),
        lambda x: 0.5 * x * (1 + torch.tanh(CUBE * (x + 0.05 * x**3))),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: 1 / (2 + torch.exp(-x)),
        lambda x: 2 / (1 + torch.exp(-x)),
        lambda x: 1 / (1 + torch.exp(x)),
        lambda x: torch.ones(1, 1, 1, 1, 1) / (1 + torch.exp(-x)),
        lambda x: x.relu() / (1 + torch.exp(-x)),
        lambda x: (e := x.exp()) / e.sum((1, 2), keepdim=True),
        lambda x: x.exp() / (x + 1).exp().sum(1, keepdim=True),
        lambda x: torch.exp(x - x.amax(2, keepdim=True)) / x.exp().sum(1, keepdim=True),
    ],
)
def test_another_function_stays_in_pieces(function: Callable[[Tensor], Tensor]) -> None:
    """Other constants, another argument and a missing bound make another function."""
    whole = {"hardswish", "hardsigmoid", "silu", "gelu", "mish"}
    x = torch.randn(2, 8, 4, 4)
    names, found = joined(function, x)
    assert not whole.intersection(names)
    torch.testing.assert_close(found, function(x))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("gains", [False, True])
def test_a_layer_norm_in_pieces_is_one_operator(style: str, gains: bool) -> None:
    """It is found however its deviation is written, takes gains and shifts, and has the values of the pieces."""
    norm, x = settled(Channels(style, gains)), torch.randn(2, 8, 4, 4)
    names, found = joined(norm, x)
    assert [name for name in names if name != "permute"] == ["layer_norm"]
    torch.testing.assert_close(found, norm(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x - x.mean(3, keepdim=True)) / (x.var(3, keepdim=True) + 1e-5).sqrt(),
        lambda x: (x - x.mean(2, keepdim=True)) / ((x - x.mean(2, keepdim=True)).pow(2).mean(2, True) + 1e-5).sqrt(),
        lambda x: x / (x.pow(2).mean(3, keepdim=True) + 1e-5).sqrt(),
        lambda x: (x - x.mean(3, keepdim=True)) / ((x - x.mean(3, keepdim=True)).pow(2).mean(3, True)).sqrt(),
    ],
)
def test_another_norm_stays_in_pieces(function: Callable[[Tensor], Tensor]) -> None:
    """The unbiased variance, other axes, no mean and no epsilon make another norm."""
    assert "layer_norm" not in joined(function, torch.randn(2, 8, 4, 4))[0]


def test_pieces_that_others_read_stay() -> None:
    """The gate of a swish that something else reads is still computed."""

    def function(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate.mean((2, 3), keepdim=True)

    x = torch.randn(2, 8, 4, 4)
    names, found = joined(function, x)
    assert {"silu", "sigmoid"} <= set(names)
    torch.testing.assert_close(found, function(x))


def test_a_trace_has_whole_operators() -> None:
    """A module's activation and norm in pieces are whole in its trace, which has the module's values."""
    swish = Applied(lambda x: x * F.relu6(x + 3) / 6)
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 3), swish, Channels("power"), nn.Flatten(), nn.Linear(1568, 5)))
    graph, images = trace(model, SIZE), torch.randn(4, *SIZE)
    names = {operator_of(node).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"}
    assert {"hardswish", "layer_norm"} <= names
    assert not {"mean", "sqrt", "hardtanh", "clamp", "add", "mul"} & names
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_long_chain_of_products_is_no_trouble() -> None:
    """A foreign file may have thousands of them in a row."""

    def function(x: Tensor) -> Tensor:
        y = x
        for _ in range(1200):
            y = y * 1.0001
        return y * torch.sigmoid(y)

    names, _ = joined(function, torch.zeros(1, 2))
    assert names.count("mul") == 1200
    assert names[-1] == "silu"
