"""Classifiers that timm does not have, or has in large forms alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.blocks import Branches, Residual, conv, head, separable


class Shuffle(nn.Module):
    """The unit of ShuffleNetV2: half of the channels pass a branch, then both halves are mixed."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        own, half = (channels if stride > 1 else channels // 2), out // 2
        self.main = nn.Sequential(conv(own, half, 1), conv(half, half, 3, stride, half, act=None), conv(half, half, 1))
        self.side = None
        if stride > 1:
            self.side = nn.Sequential(conv(own, own, 3, stride, own, act=None), conv(own, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.side is None:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, self.main(right)], 1)
        else:
            x = torch.cat([self.side(x), self.main(x)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    stem = nn.Sequential(conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1))
    stages = [Shuffle(16, 32, 2), Shuffle(32, 32, 1), Shuffle(32, 64, 2), Shuffle(64, 64, 1), Shuffle(64, 64, 1)]
    return nn.Sequential(stem, *stages, conv(64, 128, 1), head(128))


class Fire(nn.Module):
    """The module of SqueezeNet."""

    def __init__(self, channels: int, squeezed: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(channels, squeezed, 1), nn.ReLU())
        one, three = nn.Conv2d(squeezed, out, 1), nn.Conv2d(squeezed, out, 3, padding=1)
        self.expand = Branches(nn.Sequential(one, nn.ReLU()), nn.Sequential(three, nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.squeeze(x))


def squeezenet() -> nn.Module:
    stem = [nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    fires = [Fire(32, 8, 32), Fire(64, 8, 32), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(64, 16, 64)]
    end = [nn.Dropout(), nn.Conv2d(128, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *fires, *end)


def vgg() -> nn.Module:
    """Convolutions with biases, no norms, and hidden linear layers with dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for out in (16, 32, 64, 64):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2, 2)]
        channels = out
    hidden = [nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((4, 4)), *hidden)


def lenet() -> nn.Module:
    """Tanh and average pools on images of one channel."""
    first = [nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)]
    second = [nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(16 * 36, 64), nn.Tanh(), nn.Linear(64, 10))


class Wide(nn.Module):
    """A part of Inception: convolutions of several sizes, factorised ones among them, and a pool."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = Branches(
            conv(channels, 16, 1),
            nn.Sequential(conv(channels, 8, 1), _factorised(8, 16, 5)),
            nn.Sequential(conv(channels, 8, 1), conv(8, 16), conv(16, 16)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(channels, 16, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def _factorised(channels: int, out: int, size: int) -> nn.Sequential:
    across = nn.Conv2d(channels, out, (1, size), padding=(0, size // 2), bias=False)
    down = nn.Conv2d(out, out, (size, 1), padding=(size // 2, 0), bias=False)
    return nn.Sequential(across, nn.BatchNorm2d(out), nn.ReLU(), down, nn.BatchNorm2d(out), nn.ReLU())


def inception() -> nn.Module:
    smaller = Branches(conv(64, 32, 3, 2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(conv(3, 32, 3, 2), nn.MaxPool2d(3, 2, 1), Wide(32), smaller, Wide(96), head(64))


def xception() -> nn.Module:
    """Separable convolutions behind a rectifier, beside strided shortcuts."""
    parts = []
    for channels, out in ((16, 32), (32, 64)):
        inner = [separable(channels, out, act=None), nn.ReLU(), separable(out, out, act=None), nn.MaxPool2d(3, 2, 1)]
        parts.append(Residual(nn.Sequential(nn.ReLU(), *inner), conv(channels, out, 1, 2, act=None)))
    return nn.Sequential(conv(3, 16, 3, 2), *parts, nn.ReLU(), head(64))


class Maxout(nn.Module):
    """The larger half of the channels, place by place, as in LightCNN."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 2 * out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.layer(x).chunk(2, 1)
        return torch.max(one, other)


def light_cnn() -> nn.Module:
    layers = [Maxout(1, 16, 5), nn.MaxPool2d(2), Maxout(16, 16, 1), Maxout(16, 32, 3), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, Maxout(32, 32, 3), nn.MaxPool2d(2), head(32))


class GroupBlock(nn.Module):
    """A residual block with group norms."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(4, out), nn.GroupNorm(4, out)
        self.side = nn.Conv2d(channels, out, 1, stride) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.side(x))


def group_norm_resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    return nn.Sequential(*stem, GroupBlock(16, 16, 1), GroupBlock(16, 32, 2), GroupBlock(32, 64, 2), head(64))


class Reparameterised(nn.Module):
    """The block of RepVGG as it is trained: two convolutions and the values themselves, each behind a norm."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.three, self.one = conv(channels, out, 3, stride, act=None), conv(channels, out, 1, stride, act=None)
        self.same = nn.BatchNorm2d(channels) if stride == 1 and channels == out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return F.relu(y if self.same is None else y + self.same(x))


def repvgg() -> nn.Module:
    blocks = [Reparameterised(*block) for block in ((3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2))]
    return nn.Sequential(*blocks, head(64))


def tagger() -> nn.Module:
    """Labels, yes or no each: hard swish, squeeze-and-excite, and a sigmoid at the end."""
    blocks = [conv(3, 16, 3, 2, act=nn.Hardswish), Excited(16, 32), Excited(32, 48)]
    return nn.Sequential(*blocks, head(48, 8), nn.Sigmoid())


class Excited(nn.Module):
    """A separable convolution of stride 2 whose channels are scaled by what all places say."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layers = separable(channels, out, 5, 2, nn.Hardswish)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(out, out // 4, 1), nn.ReLU(), nn.Conv2d(out // 4, out, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return x * self.gate(x)
