"""Four small classifiers without batch norms, for images [N, 3, 32, 32]. ``train_cifar10.py`` trains them.

They are also MODELs of ``acq quantize``, in the folder of this repository:

    acq quantize recipes.networks:groupnorm_resnet --checkpoint weights.safetensors --input-size 3,32,32 \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --bits w4a4
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
RESNET_WIDTHS, BLOCKS = (32, 64, 128), 2
CONVNEXT_WIDTHS = (40, 80, 160)
WIDTH, HEADS, DEPTH, PLACES = 96, 3, 5, 64  # of the transformer; its stem leaves 8 x 8 places
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # restores unit variance behind a ReLU (Brock et al., arXiv 2101.08692)


class GroupNormBlock(nn.Module):
    """Two 3 x 3 convolutions, each with a group norm, beside a shortcut; ReLU behind the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance ``scale ** 2 / fan_in``, times a learned gain for each."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1, scale: float = 1.0) -> None:
        super().__init__(in_channels, channels, size, stride, size // 2)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        fan_in = self.weight[0].numel()
        weight = (self.weight - mean) * torch.rsqrt(variance * fan_in + 1e-4) * (self.gain * self.scale)
        return self._conv_forward(x, weight, self.bias)


class NormFreeBlock(nn.Module):
    """ReLU and convolution, twice, beside a shortcut; a learned factor scales the sum's second part."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = StandardisedConv2d(in_channels, channels, 3, stride, RELU_GAIN)
        self.conv2 = StandardisedConv2d(channels, channels, 3, 1, RELU_GAIN)
        self.shortcut = None if stride == 1 else StandardisedConv2d(in_channels, channels, 1, stride, RELU_GAIN)
        self.factor = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        kept = x if self.shortcut is None else self.shortcut(y)
        return kept + self.factor * self.conv2(F.relu(self.conv1(y)))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, a layer norm of channels, two linear layers and a layer scale, beside the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # [N, C, H, W] -> [N, H, W, C]
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of maps [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EncoderBlock(nn.Module):
    """Attention and two linear layers on tokens [N, T, C], each behind a layer norm and beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, t, 3, HEADS, c // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, C / heads]
        weights = (query @ key.transpose(2, 3) / math.sqrt(c // HEADS)).softmax(3)  # [N, heads, T, T]
        y = weights @ value
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer with a stem of three convolutions; its head reads the mean of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, WIDTH // 3, 2 * WIDTH // 3, WIDTH)
        self.stem = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, (2, 1, 2)[i], 1) for i in range(3))
        self.positions = nn.Parameter(0.02 * torch.randn(1, PLACES, WIDTH))
        self.blocks = nn.Sequential(*(EncoderBlock() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.stem
        x = third(F.relu(second(F.relu(first(x)))))
        x = x.flatten(2).transpose(1, 2) + self.positions  # [N, C, 8, 8] -> [N, 64, C]
        return self.head(self.norm(self.blocks(x)).mean(1))


class Classifier(nn.Sequential):
    """Features [N, C, H, W], their mean over all places, and a linear layer."""

    def __init__(self, *features: nn.Module, channels: int) -> None:
        super().__init__(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def groupnorm_resnet() -> nn.Module:
    """A ResNet with group norms: three stages of two blocks, 0.70 M parameters."""
    first = RESNET_WIDTHS[0]
    parts: list[nn.Module] = [nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.GroupNorm(8, first), nn.ReLU()]
    for before, width in zip((first, *RESNET_WIDTHS), RESNET_WIDTHS, strict=False):
        parts += [GroupNormBlock(before, width, 1 if before == width else 2)]
        parts += [GroupNormBlock(width, width, 1) for _ in range(BLOCKS - 1)]
    return Classifier(*parts, channels=RESNET_WIDTHS[-1])


def norm_free_resnet() -> nn.Module:
    """A ResNet without norms, with standardised weights and scaled sums (Brock et al., arXiv 2101.08692)."""
    first = RESNET_WIDTHS[0]
    parts: list[nn.Module] = [StandardisedConv2d(3, first, 3, 2)]
    for before, width in zip((first, *RESNET_WIDTHS), RESNET_WIDTHS, strict=False):
        parts += [NormFreeBlock(before, width, 1 if before == width else 2)]
        parts += [NormFreeBlock(width, width, 1) for _ in range(BLOCKS - 1)]
    return Classifier(*parts, nn.ReLU(), channels=RESNET_WIDTHS[-1])


def vit() -> nn.Module:
    """A vision transformer with a convolutional stem: five blocks of width 96, 0.46 M parameters."""
    return ViT()


def convnext() -> nn.Module:
    """A ConvNeXt: three stages of two blocks, 0.64 M parameters."""
    parts: list[nn.Module] = [nn.Conv2d(3, CONVNEXT_WIDTHS[0], 3, 2, 1), ChannelNorm(CONVNEXT_WIDTHS[0])]
    for before, width in zip((CONVNEXT_WIDTHS[0], *CONVNEXT_WIDTHS), CONVNEXT_WIDTHS, strict=False):
        parts += [] if before == width else [ChannelNorm(before), nn.Conv2d(before, width, 2, 2)]
        parts += [ConvNeXtBlock(width), ConvNeXtBlock(width)]
    return Classifier(*parts, ChannelNorm(CONVNEXT_WIDTHS[-1]), channels=CONVNEXT_WIDTHS[-1])


NETWORKS = {build.__name__: build for build in (groupnorm_resnet, norm_free_resnet, vit, convnext)}
