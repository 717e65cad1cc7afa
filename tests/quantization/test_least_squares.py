from __future__ import annotations

import pytest
import torch
from torch import Tensor

from acq.quantization import least_squares
from acq.quantization.calibration import weight_scale
from acq.quantization.least_squares import best_rounding, column_order, round_columns
from acq.quantization.quantizers import WeightQuantizer


def problem(groups: int, channels: int, size: int, bits: int) -> tuple[Tensor, Tensor, Tensor, WeightQuantizer]:
    """Weights, their scales, the Hessian of correlated inputs, and a quantizer."""
    weight = torch.randn(groups, channels, size, dtype=torch.float64)
    inputs = torch.randn(groups, 500, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
    quantizer = WeightQuantizer(groups * channels, bits)
    scale = weight_scale(weight.view(-1, size).float(), quantizer).view(groups, channels, 1).double()
    return weight, scale, inputs.mT @ inputs / 500, quantizer


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> Tensor:
    return ((weight - rounded) @ hessian * (weight - rounded)).sum(2)


@pytest.mark.parametrize(("groups", "bits"), [(1, 2), (3, 3), (1, 4), (3, 8)])
def test_rounding_columns_beats_rounding_each_weight(groups: int, bits: int) -> None:
    """The output error is mostly well below that of the nearest integers, and every weight has an integer in range."""
    weight, scale, hessian, quantizer = problem(groups, 16, 12, bits)
    qmin, qmax = quantizer.qmin, quantizer.qmax
    nearest = (weight / scale).round().clamp(qmin, qmax) * scale
    rounded = round_columns(weight, scale, column_order(hessian), qmin, qmax)
    integers = rounded / scale
    assert torch.allclose(integers, integers.round(), atol=1e-9)
    assert integers.min() >= qmin - 1e-9
    assert integers.max() <= qmax + 1e-9
    # a single channel may lose: clipping cannot be compensated
    gain = output_error(weight, rounded, hessian) / output_error(weight, nearest, hessian)
    assert gain.median() < 0.8


@pytest.mark.parametrize("bits", [2, 4])
def test_searching_scales_beats_the_first_scales(bits: int) -> None:
    """Scales, columns and sweeps together have no larger error in any channel than columns alone."""
    weight, scale, hessian, quantizer = problem(2, 16, 12, bits)
    chosen, rounded = best_rounding(weight, scale, hessian, quantizer)
    alone = round_columns(weight, scale, column_order(hessian), quantizer.qmin, quantizer.qmax)
    assert (output_error(weight, rounded, hessian) <= output_error(weight, alone, hessian) + 1e-12).all()
    assert torch.allclose(rounded / chosen, (rounded / chosen).round(), atol=1e-9)


@pytest.mark.parametrize(("bits", "lost"), [(4, 1.1), (8, 1.5)])
def test_short_scales_are_kept(bits: int, lost: float) -> None:
    """Scales are representable; at 4 bits almost nothing is lost, at 8 bits half of a 200 times smaller error."""
    weight, scale, hessian, quantizer = problem(2, 16, 12, bits)
    short = WeightQuantizer(32, bits, power_of_two_scales=True)
    _, free = best_rounding(weight, scale, hessian, quantizer)
    chosen, rounded = best_rounding(weight, scale, hessian, short)
    assert torch.equal(short.representable(chosen), chosen)
    assert torch.equal(rounded / chosen, (rounded / chosen).round())
    assert output_error(weight, rounded, hessian).sum() < lost * output_error(weight, free, hessian).sum()


def test_the_best_integers_are_found_where_all_can_be_tried() -> None:
    """None of the 64 roundings of three weights to 2 bits beats the result by more than a tenth on average."""
    weight, scale, hessian, quantizer = problem(1, 32, 3, 2)
    chosen, rounded = best_rounding(weight, scale, hessian, quantizer)
    levels = torch.arange(quantizer.qmin, quantizer.qmax + 1, dtype=torch.float64)
    every = torch.cartesian_prod(levels, levels, levels).unsqueeze(0)  # [1, 64, 3]
    pairs = zip(weight[0].unsqueeze(1), chosen[0], strict=True)
    tried = torch.stack([output_error(w, every * s, hessian).min() for w, s in pairs])
    found = output_error(weight, rounded, hessian)[0]
    assert (found >= tried - 1e-9).all()
    assert found.mean() < 1.1 * tried.mean()


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks, the last one smaller, give the scales and weights of one block."""
    weight, scale, hessian, quantizer = problem(2, 8, 150, 4)
    blocked = best_rounding(weight, scale, hessian, quantizer)
    monkeypatch.setattr(least_squares, "_BLOCK", 150)
    whole = best_rounding(weight, scale, hessian, quantizer)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(blocked, whole, strict=True))


def test_uncorrelated_inputs_leave_nothing_to_compensate() -> None:
    """With white inputs the columns are rounded to their nearest integers."""
    weight, scale, _, quantizer = problem(2, 8, 6, 4)
    qmin, qmax = quantizer.qmin, quantizer.qmax
    white = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    rounded = round_columns(weight, scale, column_order(white), qmin, qmax)
    assert torch.allclose(rounded, (weight / scale).round().clamp(qmin, qmax) * scale)
