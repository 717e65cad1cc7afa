"""Drawings of strokes: lines of random signs, such as text, made from random numbers alone.

Networks that read see nothing in procedural scenes. A line of signs stands on a plain ground. Each sign is a few
strokes in a cell of its own: bars, slanted lines and arcs. Everything is this project's definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acq.synthesis.draws import Range, in_chunks, uniform

_CHUNK = 64  # drawings made at once
_STROKES = 5  # of a sign, at most


@dataclass(frozen=True)
class StrokeModel:
    """The constants of the drawings. Pairs are bounds of uniform draws.

    Attributes:
        contrast: How far the ink is from the ground in each channel, where colours are circles of length 1.
        height: Height of a sign as a share of the image's height.
        spacing: Height of a line, as a multiple of the sign's height.
        advance: Width of a sign's cell, as a multiple of the sign's height.
        start: Where a line starts, as a share of the image's width.
        end: Where a line ends, as a share of the image's width.
        blank: Probability that a cell is empty.
        drawn: Probability of each stroke of a sign after the second.
        upright: Probability that a stroke is horizontal, and that it is vertical.
        arc: Probability that a stroke is an arc.
        width: Width of a stroke, as a share of the sign's height.
    """

    contrast: Range = (0.3, 0.7)
    height: Range = (0.25, 0.9)
    spacing: float = 1.3
    advance: Range = (0.5, 1.1)
    start: Range = (0.0, 0.3)
    end: Range = (0.6, 1.4)
    blank: float = 0.15
    drawn: float = 0.5
    upright: float = 0.35
    arc: float = 0.15
    width: Range = (0.05, 0.16)


_MODEL = StrokeModel()


def strokes(count: int, size: tuple[int, int, int], rng: torch.Generator, model: StrokeModel = _MODEL) -> Tensor:
    """Draw lines of random signs.

    Args:
        count: Number of drawings.
        size: Channels, height and width.
        rng: Random state.
        model: Constants of the drawings.

    Returns:
        Pixels in [0, 1], [count, C, H, W].
    """
    return in_chunks(count, _CHUNK, lambda number: _drawn(number, size, rng, model))


def _drawn(count: int, size: tuple[int, int, int], rng: torch.Generator, model: StrokeModel) -> Tensor:
    channels, height, width = size
    ground = uniform((count, channels, 1, 1), (0, 1), rng)
    ink = (ground + uniform((count, channels, 1, 1), model.contrast, rng)) % 1
    sign = uniform((count, 1, 1), model.height, rng) * height  # pixels
    lines = (height / (model.spacing * sign)).floor().clamp_min(1)
    line, down = _cells(height, model.spacing * sign, (height - lines * model.spacing * sign) / 2, axis=1)
    advance = uniform((count, 1, 1), model.advance, rng) * sign
    begin = uniform((count, 1, 1), model.start, rng) * width
    cell, across = _cells(width, advance, begin, axis=2)
    inside = (line >= 0) & (line < lines) & (cell >= 0)
    inside = inside & (cell * advance < uniform((count, 1, 1), model.end, rng) * width - begin)
    # a table of signs per image, from which each pixel takes the sign of its cell
    most = int(line.max()) + 1, int(cell.max()) + 1
    where = (torch.arange(count, device=rng.device).view(-1, 1, 1), line.clamp_min(0), cell.clamp_min(0))
    inside = inside & (uniform((count, *most), (0, 1), rng) > model.blank)[where]
    pen = uniform((count, 1, 1), model.width, rng) * sign
    away = _distance(across / sign, down / sign, advance / sign, _signs((count, *most), rng, model), where) * sign
    cover = torch.where(inside, (0.5 + pen / 2 - away).clamp(0, 1), 0.0)[:, None]
    return torch.lerp(ground, ink, cover)


def _cells(pixels: int, length: Tensor, begin: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The number of each pixel's cell on an axis, and how far from the cell's begin the pixel is."""
    shape = [1, 1, 1]
    shape[axis] = pixels
    at = torch.arange(pixels, device=length.device).view(shape) + 0.5 - begin
    number = (at / length).floor()
    return number.long(), at - number * length


@dataclass(frozen=True)
class _Signs:
    """Strokes from one point to another, both in [0, 1] of a cell; [N, lines, cells, strokes] or with 2 at the end."""

    one: Tensor
    other: Tensor
    is_arc: Tensor
    is_drawn: Tensor


def _signs(cells: tuple[int, ...], rng: torch.Generator, model: StrokeModel) -> _Signs:
    shape = (*cells, _STROKES)
    one, other = torch.rand(2, *shape, 2, generator=rng, device=rng.device)
    kind = uniform(shape, (0, 1), rng)
    level, vertical = kind < model.upright, (kind >= model.upright) & (kind < 2 * model.upright)
    same = torch.stack((vertical, level), -1)  # a vertical stroke keeps its x, a level one its y
    drawn = uniform(shape, (0, 1), rng) < model.drawn
    drawn[..., :2] = True
    return _Signs(one, torch.where(same, one, other), kind > 1 - model.arc, drawn)


def _distance(x: Tensor, y: Tensor, advance: Tensor, signs: _Signs, where: tuple[Tensor, ...]) -> Tensor:
    """Distance of each pixel [N, H, W] to the nearest stroke of its cell's sign, in heights of a sign."""
    nearest = torch.full_like(x + y, torch.inf)
    for stroke in range(_STROKES):
        (ax, ay), (bx, by) = (
            (0.8 * advance * ends[..., stroke, 0][where], ends[..., stroke, 1][where])
            for ends in (signs.one, signs.other)
        )
        along, rise = bx - ax, by - ay
        squared = (along.square() + rise.square()).clamp_min(1e-6)
        part = (((x - ax) * along + (y - ay) * rise) / squared).clamp(0, 1)
        line = torch.hypot(x - ax - part * along, y - ay - part * rise)
        # half a circle whose diameter is the stroke
        ring = (torch.hypot(x - ax - along / 2, y - ay - rise / 2) - squared.sqrt() / 2).abs()
        side = (x - ax) * rise - (y - ay) * along
        arc = torch.where(side > 0, ring, torch.inf)
        away = torch.where(signs.is_arc[..., stroke][where], arc, line)
        nearest = torch.minimum(nearest, torch.where(signs.is_drawn[..., stroke][where], away, torch.inf))
    return nearest
