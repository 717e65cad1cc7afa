"""Fake quantization with a learned scale: pure functions with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Round ``x`` to the nearest ``(q - zero_point) * scale`` with an integer q from ``qmin`` to ``qmax``.

    Ties round to even, and ``x`` is multiplied by ``1 / scale``. So the values equal those of
    ``torch.fake_quantize_per_tensor_affine`` and ``torch.fake_quantize_per_channel_affine``.

    Gradients follow learned step size quantization (LSQ; Esser et al., arXiv 1902.08153, eq. 3 and 5), without its
    gradient scale. ``x`` gets the gradient straight through inside the range and zero outside. ``scale`` gets the
    rounding error inside and the bound outside. ``zero_point`` gets no gradient.

    Args:
        x: Values [...], or [C, ...] where there is a scale per channel.
        scale: Positive, [] for one scale per tensor, or [C] for one scale per channel.
        zero_point: Integral values as floats, [] or [C].
        qmin: The least integer.
        qmax: The greatest integer.

    Returns:
        The rounded values as floats, with the shape of ``x``.
    """
    if scale.dim():
        columns = (-1,) + (1,) * (x.dim() - 1)
        scale = scale.reshape(columns)
        zero_point = zero_point.reshape(columns)
    bounds = qmin - zero_point, qmax - zero_point
    result: Tensor = _FakeQuantize.apply(x, scale, *bounds)  # type: ignore[no-untyped-call]
    return result


def round_significant(x: Tensor, digits: int) -> Tensor:
    """Round ``x`` to ``digits`` significant binary digits; the gradient passes straight through."""
    fraction, exponent = torch.frexp(x.detach())
    rounded = torch.ldexp((fraction * 2**digits).round() / 2**digits, exponent)
    return rounded + (x - x.detach())  # the difference is zero, so the sum is exact


class _FakeQuantize(torch.autograd.Function):
    # Each pass over a whole tensor costs time. So there are no boolean masks (ten times slower on a CPU), and only
    # input and output are saved, which the neighbouring layers keep anyway.

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: Tensor, qmax: Tensor) -> Tensor:
        y = torch.mul(x, 1 / scale).round_()
        torch.maximum(y, qmin, out=y)
        torch.minimum(y, qmax, out=y)
        y.mul_(scale)
        ctx.save_for_backward(x, y, scale, qmin, qmax)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, scale, qmin, qmax = ctx.saved_tensors
        through = _inside(grad, x, qmin * scale, qmax * scale)
        if not ctx.needs_input_grad[1]:
            return through, None, None, None
        # LSQ eq. 3: d y / d scale = y / scale, minus x / scale where x is inside
        if scale.dim():
            terms = (grad * y).addcmul_(through, x, value=-1)
            return through, terms.flatten(1).sum(1).view_as(scale) / scale, None, None
        return through, (_dot(grad, y) - _dot(through, x)) / scale, None, None


def _inside(grad: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``grad`` where ``low < x < high``, and zero elsewhere."""
    if x.device.type == "cpu" and not low.dim():
        # one pass; it takes its bounds as numbers, for which an accelerator would wait
        passed: Tensor = aten.hardtanh_backward(grad, x, low.item(), high.item())
        return passed
    return torch.where((x > low) & (x < high), grad, 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, without a copy if both tensors are stored channels last."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))
