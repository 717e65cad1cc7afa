"""Procedural scenes: images with the statistics of natural ones, made from random numbers alone.

The model is that of dead leaves: opaque shapes of all sizes hide one another (Lee, Mumford and Huang, IJCV 2001). Each
shape has a texture of spectrum 1 / f^a. Baradad et al. (arXiv 2106.05963) show that networks learn from such images.
The constants are this project's definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from acq.core.pixels import normalise
from acq.core.values import Preprocessing
from acq.network.attention import cell_middles
from acq.synthesis.draws import Range, in_chunks, uniform

_CHUNK = 256  # scenes drawn at once


@dataclass(frozen=True)
class SceneModel:
    """The constants of the scenes. Pairs are bounds of uniform draws.

    Attributes:
        shapes: Shapes per scene.
        opaque: Probability that a shape is drawn.
        background_slope: Exponent a of the background's spectrum.
        shape_slope: Exponent a of a shape's spectrum.
        contrast: Standard deviation of a texture.
        brightness: Mean of a texture, common to its channels.
        colour: What each channel adds to the brightness.
        mixing: Mean of the matrix that mixes channels, its deviation, and what its diagonal adds.
        position: Centre of a shape on each axis, where the image spans [-1, 1].
        extent: Least extent of a shape, and what the square of a uniform number adds at most.
        power: Exponent of the superellipse: 1 is a rhombus, 2 an ellipse, 4 nearly a box.
        edge: Sharpness of a shape's edge.
    """

    shapes: int = 12
    opaque: float = 0.7
    background_slope: Range = (0.8, 2.2)
    shape_slope: Range = (1.2, 2.6)
    contrast: Range = (0.05, 0.25)
    brightness: Range = (0.2, 0.5)
    colour: Range = (0.0, 0.3)
    mixing: tuple[float, float, float] = (0.6, 0.4, 0.4)
    position: Range = (-1.2, 1.2)
    extent: Range = (0.08, 0.8)
    power: Range = (1.0, 4.0)
    edge: float = 32.0


_MODEL = SceneModel()


def scenes(count: int, size: tuple[int, int, int], rng: torch.Generator, model: SceneModel = _MODEL) -> Tensor:
    """Draw scenes.

    Args:
        count: Number of scenes.
        size: Channels, height and width.
        rng: Random state.
        model: Constants of the scenes.

    Returns:
        Pixels in [0, 1], [count, C, H, W].
    """
    return in_chunks(count, _CHUNK, lambda number: _drawn(number, size, rng, model))


def normalised_scenes(count: int, preprocessing: Preprocessing, rng: torch.Generator) -> Tensor:
    """Draw scenes as network input, [count, C, H, W]."""
    return normalise(scenes(count, preprocessing.input_size, rng), preprocessing)


def texture(
    count: int, size: tuple[int, int, int], rng: torch.Generator, slope: Range, model: SceneModel = _MODEL
) -> Tensor:
    """Draw coloured noise whose amplitude falls as 1 / f^a.

    Brightness, contrast and the mixture of channels differ per image.

    Args:
        count: Number of textures.
        size: Channels, height and width.
        rng: Random state.
        slope: Bounds of the exponent a.
        model: Constants of the textures.

    Returns:
        Pixels in [0, 1], [count, C, H, W].
    """
    channels, height, width = size
    down = torch.fft.fftfreq(height, device=rng.device).view(-1, 1)
    across = torch.fft.rfftfreq(width, device=rng.device)
    frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
    falling = frequency ** -_uniform(count, 1, slope, rng)
    noise = torch.randn(count, channels, *frequency.shape, 2, generator=rng, device=rng.device)
    x = torch.fft.irfft2(torch.view_as_complex(noise) * falling, s=(height, width))
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    # in natural images the channels mostly rise and fall together
    mean, deviation, diagonal = model.mixing
    mixture = torch.randn(count, channels, channels, generator=rng, device=rng.device) * deviation + mean
    mixture = mixture + diagonal * torch.eye(channels, device=rng.device)
    x = torch.einsum("nij,njhw->nihw", mixture, x) * _uniform(count, 1, model.contrast, rng)
    brightness = _uniform(count, 1, model.brightness, rng) + _uniform(count, channels, model.colour, rng)
    return (x + brightness).clamp(0, 1)


def _drawn(count: int, size: tuple[int, int, int], rng: torch.Generator, model: SceneModel) -> Tensor:
    image = texture(count, size, rng, model.background_slope, model)
    for _ in range(model.shapes):
        shape = _superellipse(count, size[1:], rng, model) * (_uniform(count, 1, (0, 1), rng) < model.opaque)
        image = torch.lerp(image, texture(count, size, rng, model.shape_slope, model), shape)
    return image


def _superellipse(count: int, size: tuple[int, int], rng: torch.Generator, model: SceneModel) -> Tensor:
    """Masks [count, 1, H, W] of soft-edged shapes between a rhombus and a rounded box, of any position and angle."""
    x, y = (cell_middles(cells).to(rng.device) for cells in reversed(size))
    centre, angle = _uniform(count, 2, model.position, rng), _uniform(count, 1, (0, math.pi), rng)
    least, more = model.extent
    extent = least + more * _uniform(count, 2, (0, 1), rng).square()
    x = x.view(1, 1, 1, -1) - centre[:, :1]
    y = y.view(1, 1, -1, 1) - centre[:, 1:]
    along = (x * angle.cos() + y * angle.sin()).abs() / extent[:, :1]
    beside = (y * angle.cos() - x * angle.sin()).abs() / extent[:, 1:]
    power = _uniform(count, 1, model.power, rng)
    inside = 1 - (along**power + beside**power)
    return torch.sigmoid(model.edge * extent.amin(1, keepdim=True) * inside)


def _uniform(count: int, channels: int, bounds: Range, rng: torch.Generator) -> Tensor:
    """Uniform numbers per image and channel, [count, channels, 1, 1]."""
    return uniform((count, channels, 1, 1), bounds, rng)
