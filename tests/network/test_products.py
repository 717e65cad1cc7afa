from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, settled
from torch import Tensor, fx, nn

from acq.network.names import name_of
from acq.network.operators import operator_of
from acq.network.trace import trace
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan


class Product(nn.Module):
    """Tokens [N, T, C] times a parameter [C, K] of the module, however that is written."""

    def __init__(self, times: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (8, 6)) -> None:
        super().__init__()
        self.stem, self.times = nn.Conv2d(3, 8, 4, 4), times
        self.weight, self.shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.times(self.stem(x).flatten(2).transpose(1, 2), self.weight).mean(1) + self.shift


def operators(graph: fx.GraphModule) -> list[str]:
    return [operator_of(node) for node in graph.graph.nodes if node.op == "call_function"]


PRODUCTS: dict[str, nn.Module] = {
    "operator": Product(lambda x, w: x @ w),
    "matmul and sum": Product(lambda x, w: torch.matmul(x, w) + 1),
    "einsum": Product(lambda x, w: torch.einsum("ntc,ck->ntk", x, w)),
    "einsum of turned weights": Product(lambda x, w: torch.einsum("ntc,kc->ntk", x, w), (6, 8)),
    "turned": Product(lambda x, w: x @ w.t(), (6, 8)),
    "batch of one": Product(lambda x, w: x @ w, (1, 8, 6)),
    "vectors": Product(lambda x, w: (x.mean(1) @ w).unsqueeze(1)),
    "mm": Product(lambda x, w: torch.mm(x.mean(1), w).unsqueeze(1)),
    "addmm": Product(lambda x, w: torch.addmm(torch.ones(6), x.mean(1), w).unsqueeze(1)),
    "constant first": Product(lambda x, w: (w.t() @ x.transpose(1, 2)).transpose(1, 2)),
    "over places": Product(lambda x, w: (w @ x)[:, :, :6], (6, 16)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_constant_matrix_is_a_linear_layer(name: str) -> None:
    """It has the network's values, integer weights and the name of the module that owns the matrix."""
    model = settled(PRODUCTS[name])
    graph = trace(model, SIZE)
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-4)
    names = operators(graph)
    assert names.count("aten.linear.default") == 1
    assert not {"aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.addmm.default"} & set(names)
    layers = [node for node in plan(graph, NumberFormat.parse("w8a8")).nodes if node.role == "linear"]
    assert [node.weight_bits for node in layers] == [8]
    assert name_of(next(node for node in graph.graph.nodes if node.target is torch.ops.aten.linear.default))


def test_a_matrix_that_two_products_read_serves_both() -> None:
    """Each gets a layer, and one that reads the matrix as it is keeps it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.weight = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.ones(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            return (x @ self.weight).relu() @ self.weight.t() + self.weight[0]

    model = settled(Tied())
    graph, images = trace(model, SIZE), torch.randn(4, *SIZE)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-4)
    assert operators(graph).count("aten.linear.default") == 2


def test_products_of_computed_matrices_stay() -> None:
    """Attention's products are no layers, nor is one with a matrix per image or head."""
    for shape in ((16, 8, 6), ()):
        model = settled(Product(lambda x, w: x @ x.transpose(1, 2) @ x[:, :, :6] + 0 * w.sum(), shape or (8, 6)))
        names = operators(trace(model, SIZE))
        assert names.count("aten.linear.default") == 0
        assert "aten.matmul.default" in names
