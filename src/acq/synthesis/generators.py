"""Conditions to images. A generator is a class; register a new one with ``@generator("name")``."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.values import Condition, Preprocessing
from acq.network.attention import cell_middles

GENERATORS: dict[str, Callable[..., nn.Module]] = {}
GAIN = 2.0  # how far content moves for a centre: attention follows a move of the content at about half its length


def generator(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a generator class under ``name``, by which a config chooses it."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        GENERATORS[name] = kind
        return kind

    return register


def bump(centre: Tensor, height: int, width: int, sharpness: float = 0.35) -> Tensor:
    """A Gaussian of standard deviation ``sharpness`` at each centre: [N, 2] -> [N, 1, H, W], peak one.

    This project's definition of how a position enters a convolutional generator: as a map, which convolutions can
    follow, where two numbers would first have to be turned into one.
    """
    x, y = cell_middles(width).to(centre), cell_middles(height).to(centre)
    across = (x.view(1, 1, -1) - centre[:, 0].view(-1, 1, 1)).square()
    down = (y.view(1, -1, 1) - centre[:, 1].view(-1, 1, 1)).square()
    return torch.exp((across + down) / (-2 * sharpness**2)).unsqueeze(1)


def window(canvas: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Cut ``height x width`` cells out of each canvas so that its content moves by ``GAIN * centre``.

    [N, C, H, W], [N, 2] -> [N, C, height, width], bilinear, so that parts of a cell count and the position can be
    learned through; beyond its edge a canvas is mirrored. This project's definition: an image whose content is
    moved moves the teacher's attention, so the condition steers from the first step on.
    """
    across, down = width / canvas.shape[3], height / canvas.shape[2]
    theta = canvas.new_zeros(len(canvas), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = across, down
    theta[:, :, 2] = -GAIN * centre * centre.new_tensor((across, down))  # content right: window left
    grid = F.affine_grid(theta, [len(canvas), 1, height, width], align_corners=False)
    return F.grid_sample(canvas, grid, padding_mode="reflection", align_corners=False)


@generator("canvas")
class CanvasGenerator(nn.Module):
    """Noise and label make a small canvas, the centre places a window on it, upsampling convolutions do the rest.

    The centre enters twice: by where the window is cut and as a Gaussian bump beside the features of every stage.
    The output is a normalised image whose pixels lie in [0, 1], so it is one that an image file could hold.
    Widths halve with each doubling of the resolution, so the cost of a stage stays about the same and the first
    layer stays small at any image size (about ``8 x 8`` cells and a margin to begin with).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, preprocessing: Preprocessing, classes: int, *, noise_dim: int, width: int, narrowest: int = 16
    ) -> None:
        super().__init__()
        channels, height, across = preprocessing.input_size
        doublings = max(1, math.ceil(math.log2(min(height, across) / 8)))
        self.sizes = [(math.ceil(height / 2**k), math.ceil(across / 2**k)) for k in range(doublings, -1, -1)]
        self.canvas = [size + 2 * (size // 4) for size in self.sizes[0]]
        widths = [max(narrowest, width // 2**k) for k in range(doublings + 1)]
        self.embedding = nn.Embedding(classes, noise_dim)
        self.start = nn.Linear(2 * noise_dim, widths[0] * math.prod(self.canvas), bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(_Stage(before, after) for before, after in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], channels, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, condition: Condition) -> Tensor:
        """Images [N, C, H, W], normalised for the teacher."""
        code = torch.cat((condition.noise, self.embedding(condition.label)), 1)
        x = self.norm(self.start(code).unflatten(1, (-1, *self.canvas)))
        x = window(x, condition.centre, *self.sizes[0])
        for stage, size in zip(self.stages, self.sizes[1:], strict=True):
            x = stage(F.interpolate(x, size=size), bump(condition.centre, *size))
        pixels = torch.sigmoid(self.last(x))
        return (pixels - self.mean) / self.std


class _Stage(nn.Module):
    """Convolve features and bump together at one resolution, then normalise."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, out_channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        # channels last, which the images inherit: convolutions then take what they are given as it lies
        both = torch.cat((x, position), 1).contiguous(memory_format=torch.channels_last)
        return F.leaky_relu(self.norm(self.conv(both)), 0.2)
