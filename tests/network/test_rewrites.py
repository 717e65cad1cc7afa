from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Applied, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.network.operators import is_constant, operator_of
from acq.network.rewrites import LAYERS
from acq.network.trace import trace

SIZE = (3, 8, 8)
aten = torch.ops.aten


class Body(nn.Module):
    """A network around one module [N, 3, 8, 8] -> [N, ...]."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)
        self.head = nn.LazyLinear(4)
        self.head(self.inner.eval()(torch.zeros(2, *SIZE)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).flatten(1))


class Rows(nn.Module):
    """Modules on [N, 3, 64]."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2))


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with drawn parameters and statistics."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=rng) * 0.5
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return model.eval()


def traced(model: nn.Module) -> tuple[fx.GraphModule, list[str]]:
    """The trace, which computes what the model does, and its operators without those on shapes."""
    graph = trace(filled(model), SIZE)
    x = images(3, SIZE)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    called = [node for node in graph.graph.nodes if node.op == "call_function" and not is_constant(node)]
    names = [operator_of(node) for node in called]
    return graph, [name.removeprefix("aten.").split(".")[0] for name in names if "sym_size" not in name]


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(0, 2),
    st.sampled_from([1, 2]), st.booleans(), st.integers(3, 6), st.integers(3, 6),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_transposed_convolution_is_a_convolution_and_a_shuffle(
    step: int, kernel: int, outputs: int, padding: int, more: int, groups: int, bias: bool, height: int, width: int
) -> None:
    """For any stride, kernel, padding, output padding and groups that torch takes."""
    padding, more = min(padding, kernel), min(more, step - 1)
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(2 * groups, outputs, kernel, kernel, generator=rng)
    offsets = torch.randn(outputs * groups, generator=rng) if bias else None
    x = torch.randn(2, 2 * groups, height, width, generator=rng)
    arguments = (x, weight, offsets, [step, step], [padding, padding], [more, more], groups, [1, 1])
    if min((n - 1) * step - 2 * padding + kernel + more for n in (height, width)) > 0:
        expected = aten.conv_transpose2d.input(*arguments)
        torch.testing.assert_close(LAYERS[aten.conv_transpose2d.input](*arguments), expected)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 2, "same"])
def test_a_convolution_over_one_axis_is_one_over_images(padding: int | str, dilation: int) -> None:
    """Its norm has four dimensions too, and between two of them no row is removed and put back."""
    first = nn.Conv1d(3, 6, 3, padding=padding, dilation=dilation)
    _, names = traced(Body(Rows(first, nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3, 2, groups=2), nn.Sigmoid())))
    assert names.count("conv2d") == 2
    assert "convolution" not in names
    assert (names.count("unsqueeze"), names.count("squeeze")) == (1, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(3, 4, 2, 2),
        nn.ConvTranspose2d(3, 4, 4, 2, 1),
        nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3, bias=False),
        nn.ConvTranspose2d(3, 4, 3, 1, 1),
    ],
    ids=["kernel 2", "kernel 4", "grouped", "stride 1"],
)
def test_transposed_convolutions_are_traced_as_convolutions(layer: nn.Module) -> None:
    """The weight of each phase is a constant, and the layer keeps its module's name."""
    graph, names = traced(Body(layer, nn.ReLU()))
    assert names.count("conv2d") == 1
    assert "convolution" not in names
    assert "inner.0" in [node.meta["name"] for node in graph.graph.nodes]


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(3, 4, 3, (1, 2)), nn.ConvTranspose2d(3, 4, 3, dilation=2)])
def test_other_transposed_convolutions_stay(layer: nn.Module) -> None:
    """With a stride per axis, or gaps in the kernel, the graph computes the same as before."""
    assert "convolution" in traced(Body(layer))[1]


def test_a_rectifier_with_one_slope_is_leaky() -> None:
    """A slope per channel stays."""
    assert "leaky_relu" in traced(Body(nn.Conv2d(3, 4, 3), nn.PReLU()))[1]
    assert "prelu" in traced(Body(nn.Conv2d(3, 4, 3), nn.PReLU(4)))[1]


MOVES: dict[str, nn.Module] = {
    "pool": nn.MaxPool2d(2),
    "adaptive pool": nn.AdaptiveMaxPool2d(3),
    "shuffle": nn.PixelShuffle(2),
    "zero pad": nn.ZeroPad2d(1),
    "reflection": nn.ReflectionPad2d(1),
    "flatten": nn.Flatten(),
    "nearest": nn.Upsample(scale_factor=2),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-1, 1)])
def test_rectifiers_come_before_what_moves_values(name: str, rectifier: nn.Module) -> None:
    """They stand right behind the layer, where a quantizer needs no levels for what they discard."""
    graph, _ = traced(Body(nn.Conv2d(3, 4, 3, padding=1), MOVES[name], rectifier))
    (layer,) = [node for node in graph.graph.nodes if node.target is aten.conv2d.default]
    (user,) = layer.users
    assert operator_of(user).split(".")[1] in ("relu", "hardtanh", "relu6")
    assert tuple(user.meta["val"].shape)[1:] == tuple(layer.meta["val"].shape)[1:]


class Between(nn.Module):
    """A layer whose output is read before its rectifier too, and one that pads before a bound above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        pooled = F.max_pool2d(y, 2)
        return torch.cat([F.relu(pooled).flatten(1), F.pad(x, (1, 1)).clamp(0.5, 2).flatten(1), y.flatten(1)], 1)


def test_rectifiers_stay_where_their_order_matters() -> None:
    """Behind a tensor that others read, and behind zeros that they would change."""
    graph, _ = traced(Body(Between()))
    (relu,) = [node for node in graph.graph.nodes if node.target is aten.relu.default]
    (clamp,) = [node for node in graph.graph.nodes if node.target is aten.clamp.default]
    assert "max_pool2d" in str(relu.args[0].target)
    assert "pad" in str(clamp.args[0].target)


@pytest.mark.parametrize(
    "several",
    [
        lambda x: x.sort(1)[0], lambda x: x.topk(2, 1).values, nn.LayerNorm((4, 8, 8)),
        lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5)[0], lambda x: torch.var_mean(x, 1)[0],
    ],
    ids=["sort", "topk", "layer norm", "layer norm with statistics", "variance"],
)  # fmt: skip
def test_rectifiers_stay_behind_operators_that_return_several_tensors(several: Callable[[Tensor], Tensor]) -> None:
    """What such an operator computes of negative numbers is not known."""
    _, names = traced(Body(nn.Conv2d(3, 4, 3, padding=1), Applied(several), nn.Hardtanh(0.1, 1)))
    assert names.index("hardtanh") > names.index("conv2d") + 1


@pytest.mark.parametrize(
    "inner",
    [
        (nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 5)),
        (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(4),
            nn.Linear(4, 5, bias=False),
        ),
    ],
    ids=["between linear layers", "behind a pool"],
)
def test_a_norm_of_vectors_becomes_part_of_the_linear_layer_behind_it(inner: tuple[nn.Module, ...]) -> None:
    """Nothing else is left of it, and the layer keeps its name."""
    graph, names = traced(Body(*inner))
    assert "batch_norm" not in names
    assert f"inner.{len(inner) - 1}" in [node.meta["name"] for node in graph.graph.nodes]


class Twice(nn.Module):
    """One linear layer behind a norm, and without it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.layer = nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x.flatten(1)))
        return self.layer(self.norm(y)) + self.layer(y.exp())


def test_a_layer_that_is_called_twice_keeps_its_weight_elsewhere() -> None:
    """Only the call behind the norm has other weights."""
    graph, names = traced(Body(Twice()))
    assert "batch_norm" not in names
    assert names.count("linear") == 4
    assert len({str(node.args[1].target) for node in graph.graph.nodes if node.target is aten.linear.default}) == 4
