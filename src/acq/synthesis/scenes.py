"""Pictures of nothing: procedural images with the statistics of natural ones, made from random numbers alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from acq.core.values import Preprocessing
from acq.network.attention import cell_middles

_SHAPES = 12
_CHUNK = 256  # scenes drawn at once: bounds memory


def scenes(count: int, size: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """``count`` pictures of overlapping soft-edged shapes, each with a texture of its own: [count, C, H, W] in [0, 1].

    The dead leaves model of natural images (occlusion of shapes of all sizes, Lee, Mumford and Huang, IJCV 2001) with
    textures of spectrum 1 / f^a. That networks learn from such pictures is known (Baradad et al., arXiv 2106.05963);
    the details are this project's definition.
    """
    return torch.cat([_drawn(min(_CHUNK, count - start), size, rng) for start in range(0, count, _CHUNK)])


def normalised_scenes(count: int, preprocessing: Preprocessing, rng: torch.Generator) -> Tensor:
    """``scenes`` [count, C, H, W] as the network takes images."""
    pictures = scenes(count, preprocessing.input_size, rng)
    mean, std = (pictures.new_tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (pictures - mean) / std


def texture(
    count: int, size: tuple[int, int, int], rng: torch.Generator, slope: tuple[float, float] = (1.2, 2.6)
) -> Tensor:
    """Coloured noise [count, C, H, W] in [0, 1] whose amplitude falls as 1 / f^a, a uniform in ``slope``.

    Brightness, contrast and the mixture of channels differ from picture to picture.
    """
    channels, height, width = size
    down = torch.fft.fftfreq(height, device=rng.device).view(-1, 1)
    across = torch.fft.rfftfreq(width, device=rng.device)
    frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
    falling = frequency ** -_uniform(count, 1, *slope, rng)
    noise = torch.randn(count, channels, *frequency.shape, 2, generator=rng, device=rng.device)
    x = torch.fft.irfft2(torch.view_as_complex(noise) * falling, s=(height, width))
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    # natural colours: channels mostly rise and fall together
    mixture = torch.randn(count, channels, channels, generator=rng, device=rng.device) * 0.4 + 0.6
    mixture = mixture + 0.4 * torch.eye(channels, device=rng.device)
    x = torch.einsum("nij,njhw->nihw", mixture, x) * _uniform(count, 1, 0.05, 0.25, rng)
    brightness = _uniform(count, 1, 0.2, 0.5, rng) + _uniform(count, channels, 0.0, 0.3, rng)
    return (x + brightness).clamp(0, 1)


def _drawn(count: int, size: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    picture = texture(count, size, rng, slope=(0.8, 2.2))
    for _ in range(_SHAPES):
        shape = _superellipse(count, size[1:], rng) * (_uniform(count, 1, 0, 1, rng) < 0.7)
        picture = torch.lerp(picture, texture(count, size, rng), shape)
    return picture


def _superellipse(count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Masks [count, 1, H, W] of soft-edged shapes between a rhombus and a rounded box, anywhere, of any direction."""
    x, y = (cell_middles(cells).to(rng.device) for cells in reversed(size))
    centre, angle = _uniform(count, 2, -1.2, 1.2, rng), _uniform(count, 1, 0, math.pi, rng)
    extent = 0.08 + 0.8 * _uniform(count, 2, 0, 1, rng).square()
    x = x.view(1, 1, 1, -1) - centre[:, :1]
    y = y.view(1, 1, -1, 1) - centre[:, 1:]
    along = (x * angle.cos() + y * angle.sin()).abs() / extent[:, :1]
    beside = (y * angle.cos() - x * angle.sin()).abs() / extent[:, 1:]
    power = _uniform(count, 1, 1, 4, rng)
    inside = 1 - (along**power + beside**power)
    return torch.sigmoid(32 * extent.amin(1, keepdim=True) * inside)


def _uniform(count: int, channels: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """[count, channels, 1, 1] between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(count, channels, 1, 1, generator=rng, device=rng.device)
