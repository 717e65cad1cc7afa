"""Rounding of a matrix to integers with the least error of its products: scales, columns, then single weights.

Shapes: G groups, K output channels per group, D inputs per group. The output error of a difference d is
``d hessian d'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acq.quantization.quantizers import WeightQuantizer

_SCALE_RATIOS = (0.7, 0.8, 0.9, 1.0, 1.1)  # of the scale that fits the weights alone
_SWEEPS = 3
_MOST_REFIT = 2.0  # factor by which refitting changes a scale
_BLOCK = 64  # columns whose effect on all others is one matrix product; that is faster than one by one


def best_rounding(target: Tensor, scale: Tensor, hessian: Tensor, quantizer: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """Search scales and rounded weights with a small output error.

    Each channel takes the ratio of its scale at which
    ``round_columns`` has the least error. Then scales are refitted, and weights moved one at a time to their best
    integer, in turns (this project's definition).

    Args:
        target: The weights to approximate [G, K, D].
        scale: Scales to begin with [G, K, 1].
        hessian: Second moments of the inputs [G, D, D].
        quantizer: The quantizer, for its integers and scales.

    Returns:
        The scales [G, K, 1] and the rounded weights [G, K, D].
    """
    best = torch.full_like(scale, torch.inf)
    rounded, chosen, order = target, scale, column_order(hessian)
    qmin, qmax = quantizer.qmin, quantizer.qmax
    for ratio in _SCALE_RATIOS:
        candidate = quantizer.representable(scale * ratio)
        tried = round_columns(target, candidate, order, qmin, qmax)
        error = _output_error(target - tried, hessian)
        better = error < best
        best, rounded = torch.where(better, error, best), torch.where(better, tried, rounded)
        chosen = torch.where(better, candidate, chosen)
    for _ in range(_SWEEPS):
        integers = (rounded / chosen).round()
        chosen = quantizer.representable(_refitted(target, integers, chosen, hessian))
        rounded = _swept(target, integers * chosen, chosen, hessian, qmin, qmax)
    return chosen, rounded


@dataclass(frozen=True)
class ColumnOrder:
    """The order in which columns are rounded.

    Attributes:
        columns: Indices of columns [G, D].
        inverse_factor: The upper triangular U [G, D, D] of ``hessian^-1 = U' U``, in that order.
    """

    columns: Tensor
    inverse_factor: Tensor


def column_order(hessian: Tensor) -> ColumnOrder:
    """Order columns by falling second moment, from the Hessian [G, D, D]."""
    columns = hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True)  # [G, D]
    rows = hessian.gather(1, columns.unsqueeze(2).expand_as(hessian))
    ordered = rows.gather(2, columns.unsqueeze(1).expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return ColumnOrder(columns, torch.linalg.cholesky(inverse, upper=True))


def round_columns(target: Tensor, scale: Tensor, order: ColumnOrder, qmin: int, qmax: int) -> Tensor:
    """Round weights column by column; the remaining columns compensate each column's error.

    This is GPTQ (Frantar et al., arXiv 2210.17323, eq. 2, with the Cholesky factor of section 3.3).

    Args:
        target: The weights [G, K, D].
        scale: The scales [G, K, 1].
        order: The order of columns.
        qmin: The least integer.
        qmax: The greatest integer.

    Returns:
        The rounded weights [G, K, D].
    """
    places = order.columns.unsqueeze(1).expand_as(target)
    left, rounded = target.gather(2, places), torch.empty_like(target)
    for block in _blocks(target):
        factor, inside = order.inverse_factor[:, block], left[:, :, block].clone()
        within, residuals = factor[:, :, block], torch.empty_like(inside)
        for column in range(inside.shape[2]):
            here = slice(column, column + 1)
            nearest = (inside[:, :, here] / scale).round().clamp(qmin, qmax) * scale
            residuals[:, :, here] = (inside[:, :, here] - nearest) / within[:, here, here]
            inside[:, :, column + 1 :] -= residuals[:, :, here] * within[:, here, column + 1 :]
            inside[:, :, here] = nearest
        rounded[:, :, block] = inside
        left[:, :, block.stop :] -= residuals @ factor[:, :, block.stop :]
    return torch.empty_like(rounded).scatter_(2, places, rounded)


def _refitted(target: Tensor, integers: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """The scale per channel with the least output error of ``target - scale * integers``, within a factor of two."""
    size = (integers @ hessian * integers).sum(2, keepdim=True)
    wanted = (target @ hessian * integers).sum(2, keepdim=True)
    ratio = (wanted / (size * scale)).nan_to_num(1.0)
    return scale * ratio.clamp(1 / _MOST_REFIT, _MOST_REFIT)


def _swept(target: Tensor, rounded: Tensor, scale: Tensor, hessian: Tensor, qmin: int, qmax: int) -> Tensor:
    """Move one weight after the other to the integer with the least output error."""
    pull = (target - rounded) @ hessian  # [G, K, D]
    for block in _blocks(target):
        within, inside = hessian[:, block, block], pull[:, :, block].clone()
        before = rounded[:, :, block].clone()
        after = before.clone()
        for column in range(inside.shape[2]):
            here = slice(column, column + 1)
            ideal = before[:, :, here] + inside[:, :, here] / within[:, here, here]
            after[:, :, here] = (ideal / scale).round().clamp(qmin, qmax) * scale
            inside[:, :, column + 1 :] -= (after[:, :, here] - before[:, :, here]) * within[:, here, column + 1 :]
        rounded[:, :, block] = after
        pull[:, :, block.stop :] -= (after - before) @ hessian[:, block, block.stop :]
    return rounded


def _blocks(target: Tensor) -> Iterator[slice]:
    """The columns [G, K, D] in parts of ``_BLOCK``."""
    columns = target.shape[2]
    return (slice(start, min(start + _BLOCK, columns)) for start in range(0, columns, _BLOCK))


def _output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    return (difference @ hessian * difference).sum(2, keepdim=True)
