from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, Chain, conv, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.network.affine import Affine, affine_of, composed, folded
from acq.network.names import name_of
from acq.network.operators import Role
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import Plan
from acq.quantization.plan import plan
from acq.quantization.student import quantizers_off


class Gain(nn.Module):
    """A function of an input and of one learned number per channel."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (8, 1, 1)) -> None:
        super().__init__()
        self.function = function
        self.value = nn.Parameter(torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.value)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x * c": lambda x, c: x * c,
    "c * x": lambda x, c: c * x,
    "x / c": lambda x, c: x / c,
    "x + c": lambda x, c: x + c,
    "c + 2 x": lambda x, c: torch.add(c, x, alpha=2),
    "x - c": lambda x, c: x - c,
    "x - 3 c": lambda x, c: torch.sub(x, c, alpha=3),
    "c - x": lambda x, c: c - x,
    "1 - x": lambda x, c: 1 - x,
    "x / 4 + c": lambda x, c: x / 4 + c,
    "-x, then c": lambda x, c: (0.5 - x) * c - 1,
}


class Narrow(nn.Module):
    """The function behind a linear layer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.fc, self.last, self.head = nn.Linear(3 * 16 * 16, 8), last, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.fc(x.flatten(1)))))


def planned(model: nn.Module, bits: str = "w4a4") -> tuple[fx.GraphModule, Plan]:
    graph = trace(model.eval(), SIZE)
    return graph, plan(graph, NumberFormat.parse(bits, 8))


def student_in_float(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The outputs of a student without its quantizers, and of its network."""
    graph, found = planned(model)
    student = build(graph, found)
    calibrate(student, [images(8)])
    with torch.no_grad(), quantizers_off(student):
        return student(images(4, seed=2)), graph(images(4, seed=2))


def roles(found: Plan) -> list[Role]:
    return [entry.role for entry in found.nodes]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_constants_are_folded_into_the_layer_before_them(name: str) -> None:
    """Behind a batch norm or a linear layer no operator is left, no tensor is rounded, and the network is the same."""
    for model in (Chain(Gain(FUNCTIONS[name]), nn.ReLU()), Narrow(Gain(FUNCTIONS[name], (8,)))):
        _, found = planned(model)
        assert not {Role.RESCALE, Role.ADD, Role.PRODUCT, Role.FLOAT} & set(roles(found))
        assert all(entry.output_bits is None for entry in found.nodes if entry.role == Role.FOLD)
        torch.testing.assert_close(*student_in_float(model))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "1 - x"])
def test_constants_behind_a_rectifier_become_one_layer(name: str) -> None:
    """One depthwise convolution with 8 bits takes 8-bit values, at every width, and the network is the same."""
    model = Chain(nn.ReLU(), Gain(FUNCTIONS[name]), conv(8, 8), nn.ReLU())
    for bits in ("w2a2", "w4a4", "w4a8"):
        _, found = planned(model, bits)
        own = [entry for entry in found.nodes if entry.role == Role.RESCALE]
        assert [entry.weight_bits for entry in own] == [8]
        assert next(entry for entry in found.nodes if entry.role == Role.RECTIFIER).output_bits == 8
        assert not found.float_nodes
    torch.testing.assert_close(*student_in_float(model))


def test_two_users_keep_a_layer_from_taking_constants() -> None:
    """The unscaled output is needed too, so the constants have a layer of their own."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = Gain(FUNCTIONS["x * c"])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gain(x)

    model = Chain(Both(), nn.ReLU())
    _, found = planned(model)
    assert roles(found).count(Role.RESCALE) == 1
    torch.testing.assert_close(*student_in_float(model))


@pytest.mark.parametrize(
    "between",
    [
        nn.ReLU(),
        nn.LeakyReLU(0.1),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
    ],
    ids=["relu", "leaky relu", "pool behind", "pool before"],
)
def test_a_layer_takes_over_the_sizes_of_a_later_batch_norm(between: nn.Module) -> None:
    """Then every channel of the tensor in between has the range of the result, and the batch norm keeps signs alone."""
    model = Chain(between, nn.BatchNorm2d(8), conv(8, 8), nn.ReLU())
    with torch.no_grad():
        model.middle[1].weight.copy_(torch.tensor([5.0, -0.02, 0.0, 1.0, 30.0, -2.0, 0.3, 0.01]))
    graph, found = planned(model)
    student = build(graph, found)
    layers = dict(student.layers())
    assert layers["middle.1"].weight.flatten().tolist() == pytest.approx([1, -1, 0, 1, 1, -1, 1, 1])
    torch.testing.assert_close(*student_in_float(model))


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.GELU()], ids=["clipped", "smooth"])
def test_sizes_do_not_pass_what_depends_on_them(between: nn.Module) -> None:
    """A bound or a curve is not that of scaled values, so the batch norm keeps its factors."""
    model = Chain(between, nn.BatchNorm2d(8), conv(8, 8), nn.ReLU())
    with torch.no_grad():
        model.middle[1].weight.fill_(5.0)
    graph, found = planned(model)
    layers = dict(build(graph, found).layers())
    assert bool((layers["middle.1"].weight > 4).all())
    torch.testing.assert_close(*student_in_float(model))


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=25)
def test_folding_constants_one_by_one_is_folding_their_composition(seed: int, count: int) -> None:
    """A linear layer with folded constants computes what the constants make of its output."""
    rng = torch.Generator().manual_seed(seed)
    weight, bias, x = (torch.randn(*shape, generator=rng) for shape in ((4, 3), (4,), (5, 3)))
    source = fx.Graph().placeholder("x")
    constants = [Affine(source, *torch.randn(2, 4, generator=rng), axis=1) for _ in range(count)]
    expected, each = F.linear(x, weight, bias), (weight, bias)
    for affine in constants:
        expected = expected * affine.factor + affine.shift
        each = folded(*each, affine.factor, affine.shift)
    torch.testing.assert_close(F.linear(x, *each), expected)
    torch.testing.assert_close(folded(weight, bias, *composed(constants)), each)


def test_normalisation_inside_the_network_keeps_the_images_bits() -> None:
    """Mean and deviation become one layer on bytes, whose result has the image's 8 bits at every width."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.2)
            self.inner = Chain(nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - self.mean) / self.std)

    _, found = planned(Normalised())
    widths = {entry.name: entry.output_bits for entry in found.nodes if entry.output_bits}
    assert list(widths.values())[:2] == [8, 8]
    assert not found.float_nodes
    torch.testing.assert_close(*student_in_float(Normalised()))


def test_other_operands_are_no_constants_of_channels() -> None:
    """A map over places, a sum of two tensors and a batch norm of the batch's own statistics are left as they are."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.rand(1, 8, 16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.place + x * x

    graph = trace(Chain(Mixed()).eval(), SIZE)
    found = {name_of(node): affine_of(graph, node) for node in graph.graph.nodes if "middle" in name_of(node)}
    assert found
    assert all(value is None for value in found.values())


@pytest.mark.parametrize("behind", [False, True], ids=["beside the layer", "behind a permutation"])
def test_a_layer_scale_becomes_part_of_its_layer(behind: bool) -> None:
    """ConvNeXt is written both ways: the scale multiplies [N, H, W, C], or [N, C, H, W]."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 8), nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x.permute(0, 2, 3, 1))
            if behind:
                return x + y.permute(0, 3, 1, 2) * self.scale.view(1, -1, 1, 1)
            return x + (self.scale * y).permute(0, 3, 1, 2)

    _, found = planned(Chain(nn.ReLU(), Scaled()))
    (scale,) = [entry for entry in found.nodes if entry.operator == "aten.mul.Tensor"]
    assert (scale.role, scale.note) == (Role.FOLD, "folded into middle.1.layer")
    torch.testing.assert_close(*student_in_float(Chain(nn.ReLU(), Scaled())))


def test_composing_nothing_changes_nothing() -> None:
    factor, shift = composed([])
    assert (factor.item(), shift.item()) == (1, 0)
