"""Mean and variance of each channel, differentiable, in as few passes over the images as they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acq.core.values import Moments


def affine_and_moments(x: Tensor, factor: Tensor, shift: Tensor) -> tuple[Tensor, Moments]:
    """``factor * x + shift`` and the moments of ``x`` [N, C, ...] over all axes but the second.

    ``factor`` and ``shift`` are [C] and get no gradient. What a batch normalization with running statistics does
    while its input is measured: one pass forward beside that of the moments, and two backward for both.
    """
    y, mean, var = _AffineAndMoments.apply(x, factor, shift)  # type: ignore[no-untyped-call]
    return y, Moments(mean, var)


def at_least_float(x: Tensor) -> Tensor:
    """``x`` in 32 bits where it has fewer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_norm_affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """A batch normalization with running statistics as ``factor * x + shift``, [C] each, taken in double precision."""
    factor = torch.rsqrt(var.double() + epsilon)
    factor = factor if weight is None else factor * weight.double()
    shift = -mean.double() * factor
    shift = shift if bias is None else shift + bias.double()
    return factor.to(mean.dtype), shift.to(mean.dtype)


class _AffineAndMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        exact = at_least_float(x)
        if x.device.type == "cpu":  # a twelfth of var_mean's time on images in channels-last layout
            mean, var = torch.batch_norm_update_stats(exact, None, None, 0.0)
        else:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            var, mean = torch.var_mean(exact, axes, correction=0)
        ctx.save_for_backward(x, mean, factor)
        return _columns_back(torch.addcmul(shift, _columns(x), factor), x), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None, None]:
        x, mean, factor = ctx.saved_tensors
        count = x.numel() / x.shape[1]
        slope = 2 * grad_var / count  # of (x - mean)^2 / count
        constant = grad_mean / count - slope * mean
        result = torch.addcmul(constant, _columns(x), slope).addcmul_(_columns(grad), factor)
        return _columns_back(result.to(x.dtype), x), None, None


def _columns(x: Tensor) -> Tensor:
    """[N, C, ...] as [N, ..., C]: a view that lies in one piece where images are stored channels last."""
    return x.movedim(1, -1)


def _columns_back(columns: Tensor, like: Tensor) -> Tensor:
    return columns.movedim(-1, 1).view_as(like)
