"""Ranges before any training: the scales whose rounding errs least on weights and on observed activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from acq.errors import RequestError
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, quantizers_off

_SAMPLE = 32_768  # values kept of an activation, over all batches
_RATIOS = 100
_CLIPS = [percent / 100 for percent in range(104, 4, -1)]  # of the greatest weight


@torch.no_grad()
def calibrate(
    student: Student,
    batches: Iterable[Tensor],
    *,
    rng: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Give every quantizer of ``student`` its range, from its weights and from images [N, C, H, W].

    Weights are searched first, then the batches are passed through the network in floating point, each
    activation keeping a sample drawn with ``rng`` (a CPU generator; by default one with seed 0, so that two
    calls agree), and then every activation's range is searched on its sample. ``progress`` is told batches
    done and batches in all.

    Raises:
        ValueError: there are no batches.
    """
    images = list(batches)
    if not images:
        raise ValueError("calibrate needs at least one batch of images")
    for _, layer in student.layers():
        layer.weight_quantizer.set_qparams(weight_scale(layer.weight, layer.weight_quantizer))
    rng = rng if rng is not None else torch.Generator().manual_seed(0)
    quantizers = [quantizer for _, quantizer in student.activations()]
    try:
        _observe(student, images, quantizers, rng, progress)
        for quantizer in quantizers:
            quantizer.set_qparams(*activation_range(quantizer.observed(), quantizer))
    finally:
        for quantizer in quantizers:
            quantizer.stop()


def weight_scale(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """The scale [C] that minimises ``sum((w - s * clip(round(w / s), low, high))^2)`` in each channel.

    The candidates are ``s = r * max|w| / high`` with 100 ratios r from 1.04 down to 0.05, or the nearest scale that the
    quantizer can have. A channel of
    zeros, which any scale represents, takes the mean scale of the others, so that training can still move
    it.
    """
    flat = weight.detach().flatten(1)  # [C, ...] -> [C, n]
    bound = flat.abs().amax(1) / quantizer.qmax
    least = torch.finfo(flat.dtype).tiny
    steps = (quantizer.representable((bound * ratio).clamp_min(least)) for ratio in _CLIPS)
    scale = best_steps(flat, steps, quantizer.qmin, quantizer.qmax)
    live = bound > 0
    return torch.where(live, scale, scale[live].mean() if live.any() else 1.0)


def best_steps(rows: Tensor, steps: Iterable[Tensor], low: int, high: int) -> Tensor:
    """Of the candidates ``steps``, [C] each and positive, the one at which each of the ``rows`` [C, n] is rounded with
    the least squared error to multiples ``low`` to ``high``; 1 where none has a finite one."""
    best, chosen = torch.full_like(rows[:, 0], torch.inf), torch.ones_like(rows[:, 0])
    for step in steps:
        column = step.unsqueeze(1)
        rounded = (rows / column).round_().clamp_(low, high).mul_(column)
        error = rounded.sub_(rows).square_().sum(1)
        chosen = torch.where(error < best, step, chosen)
        best = torch.minimum(best, error)
    return chosen


def activation_range(x: Tensor, quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """The scale [] and zero point [] that minimise the mean squared rounding error on a sample ``x`` [n].

    The range is ``[r * min(x, 0), t * max(x, 0)]`` with ``s = (t * max - r * min) / high`` and ``z =
    round(-r * min / s)``, so zero is on the grid, and z is 0 where nothing is negative. The ratios r and t
    are searched together on 100 geometric steps from 1 down to 0.01, then each in turn around the best,
    twice. A tensor of zeros gets scale 1. A binary quantizer takes the better of the two powers of two around that
    scale, and the nearest even zero point.

    Raises:
        RequestError: the sample is empty or not finite.
    """
    if not x.numel() or not x.isfinite().all():
        found = "are not finite" if x.numel() else "were never observed"
        raise RequestError(f"values of {quantizer.name!r} {found}; check the network on these images in floating point")
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    if low == high:
        return x.new_ones(()), x.new_zeros(())
    together = [(ratio, ratio) for ratio in _ratios(0.01, 1.0, _RATIOS)]
    best = min(together, key=lambda pair: _error(x, low * pair[0], high * pair[1], quantizer.qmax))
    for width in (4.0, 1.3):
        for side in (0, 1):
            best = _refined(x, (low, high), best, side, width, quantizer.qmax)
    low, high = low * best[0], high * best[1]
    scale, zero = (
        _binary_grid(x, low, high, quantizer.qmax) if quantizer.power_of_two else _grid(low, high, quantizer.qmax)
    )
    return x.new_tensor(scale), x.new_tensor(zero)


def _refined(
    x: Tensor, extremes: tuple[float, float], best: tuple[float, float], side: int, width: float, levels: int
) -> tuple[float, float]:
    """The best pair of ratios when one of the two varies by a factor of up to ``width`` either way."""
    low, high = extremes
    if not extremes[side]:
        return best
    other = best[1 - side]
    tried = [min(best[side] * factor, 1.0) for factor in _ratios(1 / width, width, 40)]
    pairs = [best, *((ratio, other) if side == 0 else (other, ratio) for ratio in tried)]
    return min(pairs, key=lambda pair: _error(x, low * pair[0], high * pair[1], levels))


def _error(x: Tensor, low: float, high: float, levels: int) -> float:
    scale, zero = _grid(low, high, levels)
    return _grid_error(x, scale, zero, levels)


def _grid_error(x: Tensor, scale: float, zero: float, levels: int) -> float:
    rounded = (x / scale).round_().clamp_(-zero, levels - zero).mul_(scale)
    return rounded.sub_(x).square_().mean().item()


def _grid(low: float, high: float, levels: int) -> tuple[float, float]:
    scale = max(high - low, torch.finfo(torch.float32).tiny * levels) / levels
    return scale, float(round(-low / scale))


def _binary_grid(x: Tensor, low: float, high: float, levels: int) -> tuple[float, float]:
    scale, _ = _grid(low, high, levels)
    powers = [2.0 ** (math.floor(math.log2(scale)) + more) for more in (0, 1)]
    grids = [(power, min(2.0 * round(-low / power / 2), levels - 1.0)) for power in powers]
    return min(grids, key=lambda grid: _grid_error(x, grid[0], grid[1], levels))


def _ratios(low: float, high: float, count: int) -> list[float]:
    """``count`` ratios from ``high`` down to ``low``, geometric."""
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)]


def _observe(
    student: Student,
    images: list[Tensor],
    quantizers: list[ActivationQuantizer],
    rng: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    for quantizer in quantizers:
        quantizer.observe(max(_SAMPLE // len(images), 1), rng)
    with quantizers_off(student):
        for done, batch in enumerate(images, 1):
            student(batch)
            if progress is not None:
                progress(done, len(images))
