"""Number formats: fake quantization with learned step sizes, and the two modules that hold its state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

aten = torch.ops.aten
_BINARY_DIGITS = 12  # of a weight's scale and integer together: with 8 of an activation 16 products fill 24 bits


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """``x`` rounded to the grid ``(q - zero_point) * scale`` with integers q in ``qmin..qmax``, as floats.

    ``scale`` (positive) and ``zero_point`` (integral values) are float tensors: of shape [] for one grid,
    or ``scale`` [C] and ``zero_point`` [] or [C] for one grid a channel with ``axis=0``. Rounding is half
    to even, on ``x * (1 / scale)``, so values are those of
    ``torch.fake_quantize_per_{tensor,channel}_affine``.

    Gradients are those of learned step size quantization (Esser et al., arXiv 1902.08153, eq. 3 and 5),
    without its gradient scale: to ``x`` straight through inside the range and none outside; to ``scale``
    rounding error inside and the bound outside. ``zero_point`` gets none.

    Raises:
        ValueError: ``axis`` is neither None nor 0.
    """
    if axis not in (None, 0):
        raise ValueError(f"axis must be None or 0, got {axis}")
    if axis == 0:
        channels = (-1,) + (1,) * (x.dim() - 1)
        scale = scale.reshape(channels)
        zero_point = zero_point.reshape(channels)
    bounds = qmin - zero_point, qmax - zero_point
    result: Tensor = _FakeQuantize.apply(x, scale, *bounds)  # type: ignore[no-untyped-call]
    return result


def round_significant(x: Tensor, digits: int) -> Tensor:
    """``x`` rounded to ``digits`` significant binary digits, with the gradient of ``x`` itself (straight through)."""
    fraction, exponent = torch.frexp(x.detach())
    rounded = torch.ldexp((fraction * 2**digits).round() / 2**digits, exponent)
    return rounded + (x - x.detach())  # what is added is zero, so the sum is exact


def pack(integers: Tensor, bits: int) -> Tensor:
    """Integers of ``bits`` bits (int8, any shape) as bytes [ceil(n * bits / 8)].

    Each takes the low ``bits`` bits of its two's complement, least significant first, without gaps.
    """
    rows = integers.reshape(-1, 1).numpy().view(np.uint8)  # [n, 1]
    planes = np.unpackbits(rows, axis=1, bitorder="little")[:, :bits]  # [n, bits]
    return torch.from_numpy(np.packbits(planes.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    """The inverse of ``pack``: int8 of ``shape``; ValueError if the bytes are not as many as that needs."""
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes do not hold {count} integers of {bits} bits")
    planes = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    weights = np.array([1 << i for i in range(bits - 1)] + [-(1 << (bits - 1))], dtype=np.int16)
    return torch.from_numpy((planes @ weights).astype(np.int8)).reshape(shape)


class _FakeQuantize(torch.autograd.Function):
    # Every whole-tensor pass counts here: no boolean masks (ten times slower on a CPU), and nothing is saved
    # but input and output, which the layers before and after keep anyway.

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
        # LSQ eq. 3: d y / d scale = y / scale, less x / scale where x is inside
        if scale.dim():
            each = (grad * y).addcmul_(through, x, value=-1)
            return through, each.flatten(1).sum(1).view_as(scale) / scale, None, None
        return through, (_dot(grad, y) - _dot(through, x)) / scale, None, None


def _inside(grad: Tensor, x: Tensor, qmin: Tensor, qmax: Tensor) -> Tensor:
    """``grad`` where ``qmin < x < qmax`` and zero elsewhere."""
    if x.device.type == "cpu" and not qmin.dim():
        # one pass; it wants its bounds as numbers, which on an accelerator would stop the queue
        passed: Tensor = aten.hardtanh_backward(grad, x, qmin.item(), qmax.item())
        return passed
    return torch.where((x > qmin) & (x < qmax), grad, 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, without a copy where both are stored channels last."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class WeightQuantizer(nn.Module):
    """Symmetric signed grid of ``bits`` bits for weights [C, ...], one learned scale an output channel.

    The parameter ``log_scale`` [C] is the natural logarithm of the scale, so that an optimizer's step is a
    relative change. LSQ's gradient factor 1 / sqrt(n * high) is left out: Adam divides by the gradient's
    own size. It is NaN until calibration, and using it then raises RuntimeError. While ``enabled`` is False
    weights pass through. With ``power_of_two`` a scale has 12 - ``bits`` significant binary digits, so that products with
    8-bit activations on binary grids are summed without rounding in 32-bit floats (this project's definition).
    """

    log_scale: nn.Parameter
    zero: Tensor

    def __init__(self, channels: int, bits: int, name: str = "weight", *, power_of_two: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.power_of_two = power_of_two
        self.name = name
        self.qmin, self.qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.enabled = True
        self.calibrated = False
        self.log_scale = nn.Parameter(torch.full((channels,), torch.nan))
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    @property
    def scale(self) -> Tensor:
        """The scale of each channel [C]."""
        return self.representable(self.log_scale.exp())

    def representable(self, scale: Tensor) -> Tensor:
        """The nearest scales that it can have."""
        return round_significant(scale, _BINARY_DIGITS - self.bits) if self.power_of_two else scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weights [C, ...] on their grid."""
        if not self.enabled:
            return weight
        _require_calibrated(self)
        return fake_quantize(weight, self.scale, self.zero, self.qmin, self.qmax, axis=0)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """The integers q (int8) whose ``q * scale`` is what ``forward`` returns."""
        _require_calibrated(self)
        steps = weight * (1 / self.scale).view(-1, *(1,) * (weight.dim() - 1))
        return steps.round_().clamp_(self.qmin, self.qmax).to(torch.int8)

    @torch.no_grad()
    def set_qparams(self, scale: Tensor) -> None:
        """Take ``scale`` [C], positive, as the calibrated one."""
        self.log_scale.copy_(scale.log())
        self.calibrated = True

    def extra_repr(self) -> str:
        """The format, for ``print(module)``."""
        return f"bits={self.bits}, channels={self.log_scale.numel()}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.calibrated = bool(self.log_scale.isfinite().all())


class ActivationQuantizer(nn.Module):
    """Affine unsigned grid of ``bits`` bits for one tensor, with a learned scale; zero is always on the grid.

    It is inserted, told to ``observe`` (values pass through and a bounded random sample of them is kept)
    and then told to ``convert_to_integers`` a range. Before that, using it raises RuntimeError. ``log_scale`` [] is the
    natural logarithm of the scale and ``zero_point`` [] an integral value in 0..2^bits - 1; both are NaN
    until frozen. While ``enabled`` is False values pass through. With ``power_of_two`` the scale is a power of two, which is
    not learned, and the zero point even: sums on such grids are rounded alike by every engine, ties too (this project's
    definition).

    With ``channels`` the values [N, C, ...] are divided by ``channel_scale`` [C] first, always, and come out so: what reads
    them has its weights multiplied by it (``acq.quantization.equalization``). It is one a channel until somebody sets it.
    """

    log_scale: nn.Parameter
    zero_point: Tensor
    channel_scale: Tensor | None

    def __init__(
        self, bits: int, name: str = "activation", *, power_of_two: bool = False, channels: int | None = None
    ) -> None:
        super().__init__()
        self.bits = bits
        self.power_of_two = power_of_two
        self.name = name
        self.qmin, self.qmax = 0, 2**bits - 1
        self.enabled = True
        self.calibrated = False
        self.log_scale = nn.Parameter(torch.tensor(torch.nan))
        self.register_buffer("zero_point", torch.tensor(torch.nan))
        self.register_buffer("channel_scale", None if channels is None else torch.ones(channels))
        self._sample: _Sample | None = None

    @property
    def scale(self) -> Tensor:
        """The scale []."""
        scale = self.log_scale.exp()
        return round_significant(scale, 1).detach() if self.power_of_two else scale

    def forward(self, x: Tensor) -> Tensor:
        """The values on their grid, or as they are while observing or not enabled; in units of the ``channel_scale``."""
        if self.channel_scale is not None:
            x = x * self.factor(x.dim())
        if self._sample is not None:
            self._sample.add(x)
            return x
        if not self.enabled:
            return x
        _require_calibrated(self)
        return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def factor(self, dimensions: int) -> Tensor:
        """What values of so many ``dimensions`` [N, C, ...] are multiplied by: one over the ratio, [C, 1, ...]."""
        assert self.channel_scale is not None
        return (1 / self.channel_scale).view(-1, *(1,) * (dimensions - 2))

    def observe(self, size: int, rng: torch.Generator) -> None:
        """Pass values through from now on and keep ``size`` of each batch's, drawn with ``rng`` (a CPU
        one)."""
        self._sample = _Sample(size, rng)

    def observed(self) -> Tensor:
        """The values kept so far, flat, with each batch's least and greatest among them; may be empty."""
        return self._sample.values() if self._sample is not None else torch.empty(0)

    def stop(self) -> None:
        """Stop observing and forget what was seen, the range staying as it was."""
        self._sample = None

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Stop observing and take ``scale`` [] (positive) and ``zero_point`` [] (integral) as calibrated.

        Raises:
            ValueError: the zero point is no integer of the grid, so zero would not be exact, or odd on a binary one.
        """
        zero = zero_point.item()
        if zero not in range(self.qmin, self.qmax + 1, 2 if self.power_of_two else 1):
            kind = "an even" if self.power_of_two else "an"
            raise ValueError(f"{self.name}: zero point {zero} is not {kind} integer in {self.qmin}..{self.qmax}")
        self.log_scale.copy_(scale.log())
        self.zero_point.copy_(zero_point)
        self.calibrated = True
        self.stop()

    def extra_repr(self) -> str:
        """The format, for ``print(module)``."""
        return f"bits={self.bits}, name={self.name!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.channel_scale is not None:  # checkpoints had none before
            state_dict.setdefault(f"{prefix}channel_scale", torch.ones_like(self.channel_scale))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.calibrated = bool(self.log_scale.isfinite() & self.zero_point.isfinite())


class _Sample:
    """Some values of each batch, drawn with replacement, and its two extremes."""

    def __init__(self, size: int, rng: torch.Generator) -> None:
        self.size = size
        self.rng = rng
        self.parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        if flat.numel() > self.size:
            chosen = torch.randint(flat.numel(), (self.size,), generator=self.rng).to(flat.device)
            flat = torch.cat([flat[chosen], torch.stack(flat.aminmax())])
        self.parts.append(flat.clone())

    def values(self) -> Tensor:
        return torch.cat(self.parts) if self.parts else torch.empty(0)


def _require_calibrated(quantizer: WeightQuantizer | ActivationQuantizer) -> None:
    if not quantizer.calibrated:
        raise RuntimeError(f"quantizer {quantizer.name!r} has no range yet; call calibrate(student, batches) first")
