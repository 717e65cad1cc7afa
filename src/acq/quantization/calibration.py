"""Calibration before training: search the range of each quantizer with the least squared error.

The candidates of the search are this project's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from acq.errors import RequestError
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, quantizers_off

_SAMPLE = 32_768  # values kept per activation, over all batches
_WEIGHT_RATIOS = [percent / 100 for percent in range(104, 4, -1)]  # of the largest absolute weight
_RANGE_POINTS, _SMALLEST_RANGE = 100, 0.01  # of the observed range
_REFINED_POINTS = 40
_REFINED_FACTORS = (4.0, 1.3)  # how far a bound varies around the best one, in two rounds


@torch.no_grad()
def calibrate(
    student: Student,
    batches: Iterable[Tensor],
    *,
    rng: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Set the range of every quantizer.

    Scales of weights come from the weights. Then the images pass through the network in floating point, each
    activation quantizer keeps a sample, and its range is searched on it.

    Args:
        student: The student; its quantizers change.
        batches: Images [N, C, H, W].
        rng: A generator on the CPU that draws the samples; None means seed 0, so that two calls agree.
        progress: Called with the number of batches done and in all.

    Raises:
        ValueError: There are no batches.
        RequestError: Values are not finite.
    """
    images = list(batches)
    if not images:
        raise ValueError("calibrate needs at least one batch of images")
    for _, layer in student.layers():
        layer.weight_quantizer.set_qparams(weight_scale(layer.weight, layer.weight_quantizer))
    rng = rng if rng is not None else torch.Generator().manual_seed(0)
    quantizers = [quantizer for _, quantizer in student.activations()]
    if not quantizers:
        return  # weights alone are quantized
    try:
        _observe(student, images, quantizers, rng, progress)
        for quantizer in quantizers:
            quantizer.set_qparams(*activation_range(quantizer.observed(), quantizer))
    finally:
        for quantizer in quantizers:
            quantizer.stop()


def weight_scale(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Search the scale per channel that minimises ``sum((w - s * clip(round(w / s), qmin, qmax))^2)``.

    Candidates are ``s = r * max|w| / qmax`` with 100 ratios r from 1.04 down to 0.05. Each is rounded to a scale that
    the quantizer can have. Any scale represents a channel of zeros. It takes the mean scale of the other channels, so
    that training can move its weights.

    Args:
        weight: [C, ...].
        quantizer: The quantizer, for its range.

    Returns:
        The scales [C].
    """
    flat = weight.detach().flatten(1)  # [C, ...] -> [C, n]
    largest = flat.abs().amax(1) / quantizer.qmax
    tiny = torch.finfo(flat.dtype).tiny
    candidates = (quantizer.representable((largest * ratio).clamp_min(tiny)) for ratio in _WEIGHT_RATIOS)
    scale = best_scale(flat, candidates, quantizer.qmin, quantizer.qmax)
    nonzero = largest > 0
    return torch.where(nonzero, scale, scale[nonzero].mean() if nonzero.any() else 1.0)


def best_scale(rows: Tensor, candidates: Iterable[Tensor], qmin: int, qmax: int) -> Tensor:
    """Choose the candidate with the least squared rounding error for each row.

    Args:
        rows: Values [C, n].
        candidates: Positive scales, [C] each.
        qmin: The least integer.
        qmax: The greatest integer.

    Returns:
        The scales [C]; 1 where no candidate has a finite error.
    """
    best, chosen = torch.full_like(rows[:, 0], torch.inf), torch.ones_like(rows[:, 0])
    for scale in candidates:
        column = scale.unsqueeze(1)
        rounded = (rows / column).round_().clamp_(qmin, qmax).mul_(column)
        error = rounded.sub_(rows).square_().sum(1)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(best, error)
    return chosen


def activation_range(x: Tensor, quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """Search the scale and zero point that minimise the mean squared rounding error on a sample.

    The range is ``[low, high] = [r * min(x, 0), t * max(x, 0)]``, so zero is exact. Then ``scale`` is
    ``(high - low) / qmax`` and ``zero_point`` is ``round(-low / scale)``. If no value is negative, it is 0.

    The ratios r and t are first searched together, on 100 geometric steps from 1 to 0.01. Then each one is searched
    around the best pair, twice. A quantizer with power-of-two scales takes the better of the two powers of two around
    the scale, and the nearest even zero point.

    Args:
        x: The sample [n].
        quantizer: The quantizer, for its range and name.

    Returns:
        The scale [] and the zero point []; 1 and 0 for a sample of zeros.

    Raises:
        RequestError: The sample is empty or not finite.
    """
    if not x.numel() or not x.isfinite().all():
        fault = "are not finite" if x.numel() else "were never observed"
        raise RequestError(f"values of {quantizer.name!r} {fault}; check the network on these images in floating point")
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    if low == high:
        return x.new_ones(()), x.new_zeros(())
    together = [(ratio, ratio) for ratio in _geometric(_SMALLEST_RANGE, 1.0, _RANGE_POINTS)]
    best = min(together, key=lambda pair: _range_error(x, low * pair[0], high * pair[1], quantizer.qmax))
    for factor in _REFINED_FACTORS:
        for side in (0, 1):
            best = _refined(x, (low, high), best, side, factor, quantizer.qmax)
    low, high = low * best[0], high * best[1]
    search = _power_of_two_qparams if quantizer.power_of_two_scales else _qparams
    scale, zero_point = search(x, low, high, quantizer.qmax)
    return x.new_tensor(scale), x.new_tensor(zero_point)


def _refined(
    x: Tensor, bounds: tuple[float, float], best: tuple[float, float], side: int, factor: float, qmax: int
) -> tuple[float, float]:
    """The best pair of ratios when the one of ``side`` varies by up to ``factor`` in both directions."""
    low, high = bounds
    if not bounds[side]:
        return best
    other = best[1 - side]
    tried = [min(best[side] * ratio, 1.0) for ratio in _geometric(1 / factor, factor, _REFINED_POINTS)]
    pairs = [best, *((ratio, other) if side == 0 else (other, ratio) for ratio in tried)]
    return min(pairs, key=lambda pair: _range_error(x, low * pair[0], high * pair[1], qmax))


def _range_error(x: Tensor, low: float, high: float, qmax: int) -> float:
    return _rounding_error(x, *_qparams(x, low, high, qmax), qmax)


def _rounding_error(x: Tensor, scale: float, zero_point: float, qmax: int) -> float:
    rounded = (x / scale).round_().clamp_(-zero_point, qmax - zero_point).mul_(scale)
    return rounded.sub_(x).square_().mean().item()


def _qparams(_: Tensor, low: float, high: float, qmax: int) -> tuple[float, float]:
    """Scale and zero point of a range."""
    scale = max(high - low, torch.finfo(torch.float32).tiny * qmax) / qmax
    return scale, float(round(-low / scale))


def _power_of_two_qparams(x: Tensor, low: float, high: float, qmax: int) -> tuple[float, float]:
    """The better power of two around a range's scale, and the nearest even zero point."""
    scale, _ = _qparams(x, low, high, qmax)
    powers = [2.0 ** (math.floor(math.log2(scale)) + more) for more in (0, 1)]
    candidates: list[tuple[float, float]] = [
        (power, min(2.0 * round(-low / power / 2), qmax - 1.0)) for power in powers
    ]
    return min(candidates, key=lambda qparams: _rounding_error(x, qparams[0], qparams[1], qmax))


def _geometric(low: float, high: float, count: int) -> list[float]:
    """``count`` ratios from ``high`` down to ``low`` in geometric steps."""
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
