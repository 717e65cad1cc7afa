"""Networks that return sequences or vectors, and networks on spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.blocks import Residual, bottleneck, conv, mobile_trunk


class TextReader(nn.Module):
    """Characters along a line of text [N, T, K]: convolutions to one row, then along it in place of an RNN."""

    def __init__(self, characters: int = 20) -> None:
        super().__init__()
        self.rows = nn.Sequential(
            conv(1, 24), nn.MaxPool2d(2), conv(24, 48), nn.MaxPool2d(2), conv(48, 64), nn.MaxPool2d((2, 1)),
            conv(64, 64), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.along = nn.Sequential(nn.Conv1d(64, 64, 3, padding=1), nn.BatchNorm1d(64), nn.ReLU())
        self.out = nn.Linear(64, characters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.along(self.rows(x).squeeze(2))
        return self.out(x.permute(0, 2, 1)).softmax(2)


class Embedding(nn.Module):
    """MobileFaceNet: bottlenecks with learned leaks, a depthwise convolution of all places, a vector of length 1."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 3, 2, act=lambda: nn.PReLU(32)), conv(32, 32, groups=32, act=nn.PReLU))
        blocks = [(32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(bottleneck(*block, act=nn.PReLU) for block in blocks))
        self.wide, self.whole = conv(64, 128, 1, act=lambda: nn.PReLU(128)), conv_whole(128, 8)
        self.out, self.norm = nn.Linear(128, size, bias=False), nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole(self.wide(self.blocks(self.stem(x))))
        return F.normalize(self.norm(self.out(x.flatten(1))))


def conv_whole(channels: int, cells: int) -> nn.Sequential:
    """A depthwise convolution that covers the map."""
    return nn.Sequential(nn.Conv2d(channels, channels, cells, groups=channels, bias=False), nn.BatchNorm2d(channels))


class Keywords(nn.Module):
    """A spectrogram [N, 1, F, T] whose frequencies become channels, and residual convolutions along time."""

    def __init__(self, frequencies: int = 40, classes: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv1d(frequencies, 32, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(_along(32, 32, 1) for _ in range(2)), _along(32, 48, 2))
        self.out = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.stem(x.squeeze(1))).mean(2))


def _along(channels: int, out: int, stride: int) -> nn.Module:
    first = nn.Conv1d(channels, out, 9, stride, 4, bias=False)
    second = nn.Conv1d(out, out, 9, padding=4, bias=False)
    part = nn.Sequential(first, nn.BatchNorm1d(out), nn.ReLU(), second, nn.BatchNorm1d(out))
    shortcut = None if stride == 1 else nn.Sequential(nn.Conv1d(channels, out, 1, stride), nn.BatchNorm1d(out))
    return Residual(part, shortcut, nn.ReLU())


class SmallSpeech(nn.Module):
    """DS-CNN: depthwise separable convolutions on a spectrogram, the first of an odd size and stride."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2)
        )
        self.blocks = nn.Sequential(*(nn.Sequential(conv(32, 32, groups=32), conv(32, 32, 1)) for _ in range(3)))
        self.out = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.stem(x)).mean((2, 3)))


class Landmarks(nn.Module):
    """Coordinates of key points between 0 and 1, from maps of several sizes, as PFLD has."""

    def __init__(self, points: int = 10) -> None:
        super().__init__()
        self.trunk, self.out = mobile_trunk(2), nn.Linear(48 + 64, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(each, 1).flatten(1) for each in self.trunk(x)]
        return self.out(torch.cat(pooled, 1)).sigmoid()


class TwoTasks(nn.Module):
    """Classes and a number at once, from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.age = mobile_trunk(1), nn.Linear(64, 5), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)[-1].mean((2, 3))
        return {"kind": self.kind(x), "age": self.age(x)}
