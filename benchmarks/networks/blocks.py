"""Blocks that the networks of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv(
    channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    """A convolution that keeps the size at stride 1, its batch norm, and an activation."""
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), *([] if act is None else [act()]))


def separable(
    channels: int, out: int, kernel: int = 3, stride: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """A depthwise convolution and a pointwise one."""
    depthwise = conv(channels, channels, kernel, stride, channels, act=act)
    return nn.Sequential(depthwise, conv(channels, out, 1, act=act))


class Residual(nn.Module):
    """A part beside the sum, and an activation behind it."""

    def __init__(self, part: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.part, self.shortcut, self.act = part, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.part(x) + self.shortcut(x))


def bottleneck(
    channels: int, out: int, stride: int = 1, expand: int = 2, act: Callable[[], nn.Module] = nn.ReLU6
) -> nn.Module:
    """The inverted bottleneck of MobileNetV2."""
    inner = channels * expand
    part = nn.Sequential(
        conv(channels, inner, 1, act=act), conv(inner, inner, 3, stride, inner, act=act), conv(inner, out, 1, act=None)
    )
    return Residual(part) if stride == 1 and channels == out else part


class Trunk(nn.Module):
    """Stages one after the other; returns what the last ``kept`` ones compute."""

    def __init__(self, *stages: nn.Module, kept: int) -> None:
        super().__init__()
        self.stages, self.kept = nn.ModuleList(stages), kept

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found[-self.kept :]


def mobile_trunk(kept: int, width: int = 16) -> Trunk:
    """Maps of 1/4, 1/8 and 1/16 of the image, by inverted bottlenecks of 2, 3 and 4 times ``width`` channels."""
    stem = nn.Sequential(conv(3, width, 3, 2), bottleneck(width, 2 * width, 2))
    middle = nn.Sequential(bottleneck(2 * width, 3 * width, 2), bottleneck(3 * width, 3 * width))
    last = nn.Sequential(bottleneck(3 * width, 4 * width, 2), bottleneck(4 * width, 4 * width))
    return Trunk(stem, middle, last, kept=kept)


def head(channels: int, classes: int = 10) -> nn.Sequential:
    """The mean over places and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Branches(nn.Module):
    """Parts that read the same values, joined along the channels."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)
