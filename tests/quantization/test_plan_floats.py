"""Where operators in floating point stand in a plan: what they read and return is not rounded between them."""

from __future__ import annotations

import pytest
import torch
from helpers import SIZE, Chain, conv, images
from torch import Tensor, nn
from torch.nn import functional as F

from acq.network.operators import Role
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import NodePlan, Plan
from acq.quantization.plan import plan


class PowerMean(nn.Module):
    """A generalized mean: two powers around a pool."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(3.0).mean((2, 3), keepdim=True).pow(1 / 3)


class Attention(nn.Module):
    """Products of computed values, divided by a number, with a softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).split(8, 2)
        y = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        return self.out(y).transpose(1, 2).unflatten(2, x.shape[2:])


class Warp(nn.Module):
    """Six numbers move the image."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(conv(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6))
        self.body = Chain(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.where(x).view(-1, 2, 3), [x.shape[0], *SIZE], align_corners=False)
        return self.body(F.grid_sample(x, grid, align_corners=False))


class Roots(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() + 1).sqrt() * 0.5


def planned(model: nn.Module, bits: str = "w4a4") -> Plan:
    return plan(trace(model.eval(), SIZE), NumberFormat.parse(bits, 8))


def of(found: Plan, operator: str) -> list[NodePlan]:
    return [entry for entry in found.nodes if entry.operator == f"aten.{operator}"]


def between_floats(found: Plan, model: nn.Module) -> list[str]:
    """The nodes with a quantizer that only operators in floating point read, layers and the image aside."""
    entries = {entry.name: entry for entry in found.nodes}
    graph = trace(model.eval(), SIZE)
    wrong = []
    for node in graph.graph.nodes:
        entry = entries.get(node.meta["name"])
        users = [entries.get(user.meta["name"]) for user in node.users]
        if entry and entry.output_bits and users and all(user and user.role == Role.FLOAT for user in users):
            wrong.append(entry.name)
    return wrong


@pytest.mark.parametrize("bits", ["w2a2", "w4a4", "w8a8"])
@pytest.mark.parametrize(
    "model",
    [
        lambda: Chain(nn.ReLU(), PowerMean(), conv(8, 8)),
        lambda: Chain(nn.ReLU(), Attention(), conv(8, 8)),
        lambda: Chain(nn.ReLU(), nn.MaxPool2d(2), Roots(), conv(8, 8)),
        Warp,
    ],
    ids=["powers", "attention", "roots", "warp"],
)
def test_operators_in_float_pass_floats_to_each_other(model: type[nn.Module], bits: str) -> None:
    """Only a convolution before them is rounded, to 8 bits at every width. The student runs."""
    net = model()
    found = planned(net, bits)
    entries = {entry.name: entry for entry in found.nodes}
    assert all(
        entries[name].output_bits == 8 and entries[name].role in (Role.FOLD, Role.RECTIFIER, Role.CONVOLUTION)
        for name in between_floats(found, net)
    )
    student = build(trace(net.eval(), SIZE), found)
    calibrate(student, [images(8)])
    assert student(images(2)).isfinite().all()


def test_powers_around_a_mean_take_no_grid() -> None:
    """A grid would turn the least value that a clamp allows into zero."""
    found = planned(Chain(nn.ReLU(), PowerMean(), conv(8, 8)))
    first, last = of(found, "pow.Tensor_Scalar")
    assert (first.output_bits, last.output_bits) == (None, 4)
    assert next(entry for entry in found.nodes if entry.role == Role.POOL).output_bits is None
    assert of(found, "relu.default")[0].output_bits == 8
    assert of(found, "clamp.default")[0].output_bits is None


def test_the_numbers_that_move_an_image_stay_exact() -> None:
    """A linear layer before a sampler has no quantizer. The moved image has the image's bits, its layer 8."""
    found = planned(Warp())
    layer = next(entry for entry in found.nodes if entry.role == Role.LINEAR and entry.shape == (-1, 6))
    assert layer.output_bits is None
    assert not layer.floating
    sampled = next(entry for entry in found.nodes if entry.role == Role.FLOAT and entry.shape == (-1, *SIZE))
    assert [entry.output_bits for entry in found.nodes if entry.shape == (-1, *SIZE)][-1] == 8
    assert sampled.floating
    assert next(entry for entry in found.nodes if entry.name == "body.stem.0").weight_bits == 8


def test_a_value_that_a_layer_reads_too_is_stored_in_8_bits() -> None:
    """The operator in floating point takes all of them, the layer the activations' width."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            return self.block(x) * torch.cumsum(x, 1)

    (relu,) = of(planned(Chain(Both(), conv(8, 8))), "relu.default")
    assert (relu.output_bits, relu.requantize_for) == (8, ("middle.0.block.0",))


def test_relu_only_rounds_rectifiers_whoever_reads_them() -> None:
    """That placement is the literature's, in which what reads a value does not matter."""
    graph = trace(Chain(nn.ReLU(), Roots(), conv(8, 8)).eval(), SIZE)
    found = plan(graph, NumberFormat(4, 4), "relu-only")
    assert of(found, "relu.default")[0].output_bits == 4
