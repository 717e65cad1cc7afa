"""Other views of images: moved, mirrored, blended and pasted into one another. Labels are not kept: the teacher reads
every view anew."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.values import Condition


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """A view of each image, drawn by itself: [N, C, H, W] -> [N, C, H, W].

    Each is mirrored (half of them) and moved by up to an eighth of its size; then half are blended with the image
    before, by up to a half (mixup, Zhang et al., arXiv 1710.09412), and half have a box of up to three quarters of
    their size pasted in from the image before that (cutmix, Yun et al., arXiv 1905.04899).
    """
    images = _moved_and_mirrored(images, rng)
    blend = _uniform(len(images), rng) / 2 * (_uniform(len(images), rng) < 0.5)
    images = torch.lerp(images, images.roll(1, 0), blend)
    pasted = _box(images, rng) & (_uniform(len(images), rng) < 0.5)
    return torch.where(pasted, images.roll(2, 0), images)


def jitter(images: Tensor, condition: Condition, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """All images moved by one small random offset and mirrored or not, and the condition that they then answer to.

    At most a sixteenth of the size, or one pixel: what is drawn cannot rely on single pixels.
    """
    height, width = images.shape[2:]
    limit = [max(1, size // 16) for size in (height, width)]
    down, across = (int(_integer(2 * most + 1, rng)) - most for most in limit)
    mirror = bool(_integer(2, rng))
    padded = F.pad(images.flip(3) if mirror else images, (limit[1], limit[1], limit[0], limit[0]), mode="reflect")
    top, left = limit[0] - down, limit[1] - across
    moved = padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    x, y = condition.centre.unbind(1)
    centre = torch.stack(((-x if mirror else x) + 2 * across / width, y + 2 * down / height), 1)
    return moved, replace(condition, centre=centre)


def _moved_and_mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, across = height // 8, width // 8
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    device = images.device
    rows = torch.randint(2 * down + 1, (count, 1, 1), generator=rng, device=device)
    columns = torch.randint(2 * across + 1, (count, 1, 1), generator=rng, device=device)
    rows = rows + torch.arange(height, device=device).view(1, -1, 1)
    step = torch.arange(width, device=device).view(1, 1, -1)
    mirrored = torch.rand(count, 1, 1, generator=rng, device=device) < 0.5
    columns = columns + torch.where(mirrored, width - 1 - step, step)
    which = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)  # gathered as [N, H, W, C]: channels last


def _box(images: Tensor, rng: torch.Generator) -> Tensor:
    """Masks [N, 1, H, W] of a box a image, centred anywhere, its sides up to three quarters of the image's."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis in (2, 3):
        size = images.shape[axis]
        shape = [size if a == axis else 1 for a in range(4)]
        place = torch.arange(size, device=images.device).view(shape)
        middle, side = _uniform(len(images), rng) * size, _uniform(len(images), rng) * 0.75 * size
        inside = inside & ((place - middle).abs() < side / 2)
    return inside


def _uniform(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=rng, device=rng.device)


def _integer(below: int, rng: torch.Generator) -> Tensor:
    return torch.randint(below, (), generator=rng, device=rng.device)
