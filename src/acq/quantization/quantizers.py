"""The quantizers of weights and of activations: modules that hold scales, zero points and their state.

A quantizer is created without a range, then calibrated by ``set_qparams``. Using it before raises RuntimeError. While
``enabled`` is False, values pass through unchanged. Scales that are powers of two are this project's definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acq.quantization.fake_quantize import fake_quantize, round_significant

_SHORT_DIGITS = 12  # of a weight's integer and scale together: 16 products with 8-bit activations then fit in 24 bits


class WeightQuantizer(nn.Module):
    """Symmetric signed quantizer for weights [C, ...] with one learned scale per output channel.

    The parameter ``log_scale`` [C] is the natural logarithm of the scale, so an optimizer's step is a relative change;
    it is NaN before calibration. The gradient scale of LSQ is left out, because Adam divides by the gradient's size.

    Args:
        channels: Number of output channels C.
        bits: Bits of the integers.
        name: The layer's public name, for messages.
        power_of_two_scales: Round scales to 12 - ``bits`` significant binary digits. Products with 8-bit activations
            whose scales are powers of two then add up without rounding in 32-bit floats.
    """

    log_scale: nn.Parameter
    zero: Tensor

    def __init__(self, channels: int, bits: int, name: str = "weight", *, power_of_two_scales: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.name = name
        self.power_of_two_scales = power_of_two_scales
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
        """The scales nearest to ``scale`` that this quantizer can have."""
        return round_significant(scale, _SHORT_DIGITS - self.bits) if self.power_of_two_scales else scale

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantize weights [C, ...]."""
        if not self.enabled:
            return weight
        _require_calibrated(self)
        return fake_quantize(weight, self.scale, self.zero, self.qmin, self.qmax)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """The integers q, int8 [C, ...], for which ``q * scale`` is the output of ``forward``."""
        _require_calibrated(self)
        scaled = weight * (1 / self.scale).view(-1, *(1,) * (weight.dim() - 1))
        return scaled.round_().clamp_(self.qmin, self.qmax).to(torch.int8)

    @torch.no_grad()
    def set_qparams(self, scale: Tensor) -> None:
        """Set the scale [C], which must be positive."""
        self.log_scale.copy_(scale.log())
        self.calibrated = True

    def extra_repr(self) -> str:
        """The format, for ``print(module)``."""
        return f"bits={self.bits}, channels={self.log_scale.numel()}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.calibrated = bool(self.log_scale.isfinite().all())


class ActivationQuantizer(nn.Module):
    """Affine unsigned quantizer for one tensor with one learned scale. Zero is always exact.

    ``log_scale`` [] is the natural logarithm of the scale. ``zero_point`` [] is an integral value from 0 to
    2^bits - 1. Both are NaN before calibration. After ``observe``, values pass through and a random sample is kept.

    Args:
        bits: Bits of the integers.
        name: The public name of the quantized tensor, for messages and ``Student.read``.
        power_of_two_scales: Round the scale to a power of two, which is not learned, and require an even zero point.
            Every engine then rounds sums alike, ties too.
        channels: Number of channels C if the quantizer divides values [N, C, ...] by ``channel_scale`` [C] first. Its
            output keeps this unit, also while not enabled. Consumers' weights are multiplied by ``channel_scale``
            (``acq.quantization.equalization``).
    """

    log_scale: nn.Parameter
    zero_point: Tensor
    channel_scale: Tensor | None

    def __init__(
        self,
        bits: int,
        name: str = "activation",
        *,
        power_of_two_scales: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.name = name
        self.power_of_two_scales = power_of_two_scales
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
        return round_significant(scale, 1).detach() if self.power_of_two_scales else scale

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize values [N, ...]; with a ``channel_scale`` divide them by it first."""
        if self.channel_scale is not None:
            x = x * self.channel_factor(x.dim())
        if self._sample is not None:
            self._sample.add(x)
            return x
        if not self.enabled:
            return x
        _require_calibrated(self)
        return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)

    @torch.no_grad()
    def integers(self, x: Tensor) -> Tensor:
        """The integers q, uint8 [N, ...], for which ``(q - zero_point) * scale`` is what ``forward`` makes of ``x``.

        A ``channel_scale`` is left out: ``x`` is divided by it already.
        """
        _require_calibrated(self)
        steps = (x * (1 / self.scale)).round_() + self.zero_point
        return steps.clamp_(self.qmin, self.qmax).to(torch.uint8)

    def channel_factor(self, dimensions: int) -> Tensor:
        """``1 / channel_scale`` as [C, 1, ...], to multiply values [N, C, ...] of so many dimensions."""
        assert self.channel_scale is not None
        return (1 / self.channel_scale).view(-1, *(1,) * (dimensions - 2))

    def observe(self, size: int, rng: torch.Generator, importance: Tensor | None = None) -> None:
        """Let values pass through from now on, and keep a sample of them.

        Args:
            size: Values per batch, beside the batch's least and greatest.
            rng: A generator on the CPU.
            importance: Of each value's squared error, in a shape that broadcasts with the values; None is 1.
        """
        self._sample = _Sample(size, rng, torch.ones(()) if importance is None else importance)

    def observed(self) -> tuple[Tensor, Tensor]:
        """The sample [n] since ``observe`` and the importance of each value [n]; they may be empty."""
        return self._sample.values() if self._sample is not None else (torch.empty(0), torch.empty(0))

    def stop(self) -> None:
        """Stop observing and drop the sample; the range stays."""
        self._sample = None

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Stop observing and set the range.

        Args:
            scale: Positive, [].
            zero_point: Integral value, [].

        Raises:
            ValueError: The zero point is not an integer within the range, or is odd with ``power_of_two_scales``.
        """
        zero = zero_point.item()
        if zero not in range(self.qmin, self.qmax + 1, 2 if self.power_of_two_scales else 1):
            kind = "an even" if self.power_of_two_scales else "an"
            raise ValueError(f"{self.name}: zero point {zero} is not {kind} integer in {self.qmin}..{self.qmax}")
        self.log_scale.copy_(scale.log())
        self.zero_point.copy_(zero_point)
        self.calibrated = True
        self.stop()

    def extra_repr(self) -> str:
        """The format, for ``print(module)``."""
        return f"bits={self.bits}, name={self.name!r}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.calibrated = bool(self.log_scale.isfinite() & self.zero_point.isfinite())


class _Sample:
    """Some values of each batch, drawn with replacement, and its least and greatest value."""

    def __init__(self, size: int, rng: torch.Generator, importance: Tensor) -> None:
        self.size, self.rng, self.importance = size, rng, importance
        self.parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        x = x.detach()
        both = x, self.importance.to(x).expand_as(x)
        if x.numel() <= self.size:
            self.parts.append(torch.stack([each.flatten() for each in both]))
            return
        drawn = torch.randint(x.numel(), (self.size,), generator=self.rng).to(x.device)
        self.parts += [torch.stack([each.take(drawn) for each in both]), self._extremes(*both)]

    def _extremes(self, x: Tensor, importance: Tensor) -> Tensor:
        if not self.importance.dim():  # one number for all: their places, which take ten times as long, do not matter
            values = torch.stack(x.aminmax())
            return torch.stack((values, self.importance.to(x).expand_as(values)))
        places = torch.stack((x.argmin(), x.argmax()))
        return torch.stack((x.take(places), importance.take(places)))

    def values(self) -> tuple[Tensor, Tensor]:
        values, importance = torch.cat(self.parts, 1) if self.parts else torch.empty(2, 0)
        return values, importance


def _require_calibrated(quantizer: WeightQuantizer | ActivationQuantizer) -> None:
    if not quantizer.calibrated:
        raise RuntimeError(f"quantizer {quantizer.name!r} has no range yet; call calibrate(student, batches) first")
