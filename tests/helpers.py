"""Tiny networks, one for each style in which classifiers are written, and their traces and students."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.core.outputs import Output
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import Placement
from acq.quantization.plan import plan
from acq.quantization.roles import LayerWidth
from acq.quantization.student import Student
from acq.zoo.resnet import CifarResNet

SIZE = (3, 16, 16)
CLASSES = Output.of("class", 5)  # of the networks below


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Chain(nn.Module):
    """A convolution, the given modules, pooling and a linear layer."""

    def __init__(self, *middle: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.middle = nn.Sequential(*middle)
        self.head = Head(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.block = conv(8, 8)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=self.in_place)
        y = self.block(x)
        if self.in_place:
            y += x
        else:
            y = y + x
        return torch.relu(y)


class Shortcut(nn.Module):
    """Two additions in a row. An operand is moved first, and layers consume it before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(x), 2)
        x = x + self.one(x)
        return x + F.relu(self.two(x))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return torch.cat([x, F.relu(self.block(x))], 1)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(F.relu(self.down(gate))))


class Gated(nn.Module):
    """A gate of its own input that torch has no whole operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(x)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(4, 4, groups=2), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(x).chunk(2, 1)
        x = torch.cat([a, F.relu(self.left(b))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)  # [N, C, H, W]
        return self.right(x)


class Clipped(nn.Module):
    """Additions whose operands are clipped for a layer, or concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.left, self.right = conv(8, 8), conv(8, 4), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(F.relu6(x))
        return x + torch.cat([self.left(x), self.right(x)], 1)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.bn(x)))


class Pools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.max_pool2d(F.relu(x), 3, 2, 1), 2)
        return F.interpolate(x, scale_factor=2)


class Unknown(nn.Module):
    """An operator that the plan does not know, between two that it knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(F.relu(x), 1)


class Largest(nn.Module):
    """An operator that returns two tensors, of which the first is used."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.topk(F.relu(x), 1, 1)[0]


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(3 * 16 * 16, 12), nn.BatchNorm1d(12)
        self.two = nn.Linear(12, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.drop(F.relu(self.norm(self.one(x.flatten(1))))))


class AllConvolutional(nn.Module):
    """The class scores are the pooled output of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        self.scores = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(F.relu(self.scores(F.relu6(self.stem(x)))), 1).flatten(1)


class SameConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding="same")
        self.shared = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shared(F.relu(self.shared(F.hardtanh(self.conv(x), 0.0, 4.0)))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: CifarResNet(blocks=1, classes=5),
    "residual in place": lambda: Chain(Residual(True), Residual(True)),
    "residual": lambda: Chain(Residual(False), nn.Dropout(0.1), Residual(False)),
    "shortcut": lambda: Chain(Shortcut(), nn.ReLU()),
    "clipped": lambda: Chain(Clipped(), nn.ReLU()),
    "dense": lambda: Chain(Dense(), channels=12),
    "relu6": lambda: Chain(nn.ReLU6(inplace=True), conv(8, 8, groups=8), nn.ReLU6()),
    "hardswish": lambda: Chain(nn.Hardswish(), conv(8, 8, groups=2), nn.Hardswish(inplace=True)),
    "silu": lambda: Chain(nn.SiLU(inplace=True), conv(8, 8), nn.SiLU()),
    "gate product": lambda: Chain(Gated(), conv(8, 8), Gated()),
    "squeeze-excite": lambda: Chain(nn.ReLU(), SqueezeExcite(), conv(8, 8)),
    "shuffle": lambda: Chain(Shuffle(), nn.ReLU()),
    "pre-activation": lambda: Chain(PreActivation(), PreActivation()),
    "pools": lambda: Chain(Pools(), nn.AvgPool2d(2)),
    "unknown operator": lambda: Chain(Unknown(), conv(8, 8), nn.ReLU()),
    "two linears": TwoLinears,
    "all convolutional": AllConvolutional,
    "same padding": lambda: Chain(SameConvolution()),
    "bottleneck": lambda: Chain(conv(8, 8, 1), nn.Identity(), conv(8, 8, 1)),
    "leaky": lambda: Chain(nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.GELU()),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode with random weights and batch-norm statistics that are not trivial."""
    return settled(NETWORKS[name](), seed)


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode, with weights and statistics drawn from ``seed``."""
    rng = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
            elif value.is_floating_point():
                spread = 1.4 / value[0].numel() ** 0.5 if value.dim() > 1 else 0.3
                value.copy_(torch.randn(value.shape, generator=rng) * spread + (value.dim() == 1) * 0.5)
    return model


def images(count: int, size: tuple[int, int, int] = SIZE, seed: int = 1) -> Tensor:
    """Random normalised images [count, C, H, W]."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


@cache
def traced(name: str) -> fx.GraphModule:
    """The trace of one of the tiny networks."""
    return trace(network(name), SIZE)


def student_of(name: str, bits: str = "w4a4", placement: Placement = "deployable", **options: Any) -> Student:
    """A calibrated student of one of the tiny networks; options as for ``student_from``."""
    return student_from(traced(name), bits, placement, **options)


def student_from(
    graph: fx.GraphModule,
    bits: str = "w4a4",
    placement: Placement = "deployable",
    *,
    first_last_bits: str = "8",
    layers: Mapping[str, LayerWidth] = MappingProxyType({}),
    reduce_range: bool = True,
    **format: bool,
) -> Student:
    """A calibrated student of a traced network for images of ``SIZE``; ``format`` has flags of ``NumberFormat``.

    As in a default run, weights of 8 bits use a range of 7: CPUs without VNNI give other logits with the full range.
    """
    numbers = replace(NumberFormat.parse(bits, first_last_bits), reduce_range=reduce_range, **format)
    student = build(graph, plan(graph, numbers, placement, layers))
    calibrate(student, images(32).split(16))
    return student
