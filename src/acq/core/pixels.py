"""Pixel normalisation: the one place that converts between bytes, pixels in [0, 1] and the network's input.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq.core.values import Preprocessing

Bytes = NDArray[np.uint8]


def mean_and_std(preprocessing: Preprocessing, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel as columns that broadcast over images.

    Args:
        preprocessing: The normalisation.
        like: The tensor whose dtype and device the columns take.

    Returns:
        Mean and standard deviation, each [1, C, 1, 1].
    """
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return mean, std


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``(pixels - mean) / std``: pixels in [0, 1] [N, C, H, W] as the network takes them."""
    mean, std = mean_and_std(preprocessing, pixels)
    return (pixels - mean) / std


def denormalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``images * std + mean``: the pixels [N, C, H, W] of normalised images, not clipped to [0, 1]."""
    mean, std = mean_and_std(preprocessing, images)
    return images * std + mean


def from_bytes(images: Bytes, preprocessing: Preprocessing) -> Tensor:
    """Return uint8 images [N, H, W, C] as normalised float32 images [N, C, H, W]."""
    pixels = (
        torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    )  # [N, H, W, C] -> [N, C, H, W]
    return normalise(pixels.div_(255), preprocessing)


def to_bytes(images: Tensor, preprocessing: Preprocessing) -> Bytes:
    """Return normalised images [N, C, H, W] as uint8 images [N, H, W, C], rounded and clipped.

    This is the exact inverse of ``from_bytes`` on images that come from bytes.
    """
    pixels = denormalise(images.detach().cpu().float(), preprocessing).mul(255).round().clamp(0, 255)
    array: Bytes = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()  # [N, C, H, W] -> [N, H, W, C]
    return array
