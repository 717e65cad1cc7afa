"""Augmentation: images that are moved, mirrored, blended and pasted into one another.

Labels are not kept: the teacher computes its outputs for every augmented image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.values import Condition


@dataclass(frozen=True)
class Augmentation:
    """The constants of the augmentation (this project's definition).

    Attributes:
        shift: Largest shift, in parts of the image size: 8 is an eighth.
        mirrored: Share of mirrored images.
        blended: Share of images that are blended with another.
        blend: Largest share of the other image in a blend.
        pasted: Share of images that have a box of another image.
        box: Largest side of the box, as a share of the image's.
        jitter: Largest shift of ``jitter``, in parts of the image size.
    """

    shift: int = 8
    mirrored: float = 0.5
    blended: float = 0.5
    blend: float = 0.5
    pasted: float = 0.5
    box: float = 0.75
    jitter: int = 16


_CONSTANTS = Augmentation()


def augment(images: Tensor, rng: torch.Generator, constants: Augmentation = _CONSTANTS) -> Tensor:
    """Augment each image independently: [N, C, H, W] -> [N, C, H, W].

    Each image is moved and perhaps mirrored. Then it may be blended with the previous image (mixup, Zhang et al., arXiv
    1710.09412). It may also get a box of the image before that (cutmix, Yun et al., arXiv 1905.04899).

    Args:
        images: [N, C, H, W].
        rng: Random state.
        constants: How much is changed.
    """
    images = _moved_and_mirrored(images, rng, constants)
    blend = _uniform(len(images), rng) * constants.blend * (_uniform(len(images), rng) < constants.blended)
    images = torch.lerp(images, images.roll(1, 0), blend)
    pasted = _box(images, rng, constants.box) & (_uniform(len(images), rng) < constants.pasted)
    return torch.where(pasted, images.roll(2, 0), images)


def jitter(
    images: Tensor, condition: Condition, rng: torch.Generator, constants: Augmentation = _CONSTANTS
) -> tuple[Tensor, Condition]:
    """Move all images by one small random offset and perhaps mirror them, so that no loss relies on single pixels.

    Args:
        images: [N, C, H, W].
        condition: What is requested of them.
        rng: Random state.
        constants: How far images move; at least one pixel.

    Returns:
        The moved images, and the condition with centres moved alike.
    """
    height, width = images.shape[2:]
    limit = [max(1, size // constants.jitter) for size in (height, width)]
    down, across = (int(_integer(2 * most + 1, rng)) - most for most in limit)
    mirror = bool(_integer(2, rng))
    padded = F.pad(images.flip(3) if mirror else images, (limit[1], limit[1], limit[0], limit[0]), mode="reflect")
    top, left = limit[0] - down, limit[1] - across
    moved = padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    x, y = condition.centre.unbind(1)
    centre = torch.stack(((-x if mirror else x) + 2 * across / width, y + 2 * down / height), 1)
    return moved, replace(condition, centre=centre)


def _moved_and_mirrored(images: Tensor, rng: torch.Generator, constants: Augmentation) -> Tensor:
    count, _, height, width = images.shape
    down, across = height // constants.shift, width // constants.shift
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    device = images.device
    rows = torch.randint(2 * down + 1, (count, 1, 1), generator=rng, device=device)
    columns = torch.randint(2 * across + 1, (count, 1, 1), generator=rng, device=device)
    rows = rows + torch.arange(height, device=device).view(1, -1, 1)
    step = torch.arange(width, device=device).view(1, 1, -1)
    mirrored = torch.rand(count, 1, 1, generator=rng, device=device) < constants.mirrored
    columns = columns + torch.where(mirrored, width - 1 - step, step)
    which = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)  # gathered as [N, H, W, C]: channels last


def _box(images: Tensor, rng: torch.Generator, largest: float) -> Tensor:
    """Masks [N, 1, H, W] of one box per image, centred anywhere."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis in (2, 3):
        size = images.shape[axis]
        shape = [size if a == axis else 1 for a in range(4)]
        place = torch.arange(size, device=images.device).view(shape)
        middle, side = _uniform(len(images), rng) * size, _uniform(len(images), rng) * largest * size
        inside = inside & ((place - middle).abs() < side / 2)
    return inside


def _uniform(count: int, rng: torch.Generator) -> Tensor:
    """[count, 1, 1, 1] in [0, 1)."""
    return torch.rand(count, 1, 1, 1, generator=rng, device=rng.device)


def _integer(below: int, rng: torch.Generator) -> Tensor:
    return torch.randint(below, (), generator=rng, device=rng.device)
