"""ResNet-18 and ResNet-50 for ImageNet (He et al., arXiv 1512.03385), with the names of weights that torchvision has.

The second convolution of a bottleneck has its stride, as in torchvision, not the first one as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Basic(nn.Module):
    """Two 3 x 3 convolutions."""

    growth = 1

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """A 1 x 1, a 3 x 3 and a 1 x 1 convolution, the last four times as wide."""

    growth = 4

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.growth, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.growth)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 4 width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """A stem, four stages of blocks, and a linear layer on the means.

    Args:
        block: The kind of its blocks.
        counts: Blocks per stage.
        classes: Number of classes K.
        stem: Channels of the stem and of the first stage.
    """

    def __init__(
        self, block: type[Basic | Bottleneck], counts: Sequence[int], classes: int = 1000, stem: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = stem
        for index, count in enumerate(counts):
            width = stem * 2**index
            self.add_module(f"layer{index + 1}", _stage(block, channels, width, count, 1 if index == 0 else 2))
            channels = width * block.growth
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, K]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(block: type[Basic | Bottleneck], channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Blocks of which the first changes the shape, with a projection as its shortcut where it does."""
    out, downsample = width * block.growth, None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    rest = (block(out, width, 1, None) for _ in range(count - 1))
    return nn.Sequential(block(channels, width, stride, downsample), *rest)


def resnet18() -> nn.Module:
    return ResNet(Basic, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3))
