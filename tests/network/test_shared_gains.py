"""Layer norms and the linear layers behind them share the gains of channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, images, settled
from torch import Tensor, nn

from acq.network.constants import constant
from acq.network.rewrites import aten
from acq.network.trace import trace


class Tokens(nn.Module):
    """A layer norm on tokens [N, 4, 4, C], two linear layers that read it through ``moved``, and ``beside``."""

    def __init__(self, moved: Callable[[Tensor], Tensor], beside: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.moved, self.beside = moved, beside
        self.stem, self.bn = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
        self.norm, self.one, self.two, self.head = nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.bn(self.stem(x)).permute(0, 2, 3, 1))
        y = self.moved(x)
        found = self.head((self.one(y) * self.two(y)).flatten(1, -2).mean(1))
        return found if self.beside is None else found + self.beside(x)


def gains(model: nn.Module) -> Tensor:
    graph = trace(settled(model), SIZE)
    with torch.no_grad():
        torch.testing.assert_close(graph(images(3)), model(images(3)), rtol=1e-4, atol=1e-4)
    (norm,) = [node for node in graph.graph.nodes if node.target is aten.layer_norm.default]
    found = constant(graph, norm.args[2])
    assert found is not None
    return found


@pytest.mark.parametrize(
    "moved",
    [
        lambda x: x,
        lambda x: x.reshape(len(x), -1, 8),
        lambda x: torch.roll(x, (1, 1), (1, 2)),
        lambda x: x.permute(0, 2, 1, 3),
        lambda x: x.transpose(1, 2)[:, 0],
    ],
    ids=["as they are", "flat", "rolled", "permuted", "of one row"],
)
def test_the_square_root_goes_to_the_layers(moved: Callable[[Tensor], Tensor]) -> None:
    """All layers that read the norm take it, and the network computes the same."""
    model = Tokens(moved)
    before = settled(model).norm.weight
    torch.testing.assert_close(gains(model).abs(), before.abs().sqrt())


@pytest.mark.parametrize(
    ("moved", "beside"),
    [
        (lambda x: x, lambda x: x.mean((1, 2, 3))[:, None]),
        (lambda x: x.permute(0, 3, 1, 2).repeat(1, 1, 1, 2), None),
        (lambda x: torch.roll(x, 1, 3), None),
        (lambda x: x.reshape(len(x), 8, 16)[:, :, :8], None),
    ],
    ids=["read by another", "last axis moved", "channels rolled", "channels cut"],
)
def test_gains_stay_where_anything_else_reads_them(
    moved: Callable[[Tensor], Tensor], beside: Callable[[Tensor], Tensor] | None
) -> None:
    """So they do where channels do not keep their place."""
    model = Tokens(moved, beside)
    torch.testing.assert_close(gains(model), settled(model).norm.weight)
