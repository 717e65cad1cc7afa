"""Layers with quantized weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from acq.quantization.quantizers import WeightQuantizer


class QuantLayer(nn.Module):
    """A layer with a float ``weight``, its ``weight_quantizer``, and a float ``bias`` or None.

    Args:
        weight: [K, ...].
        bias: [K], or None.
        quantizer: The weights' quantizer; its name is the layer's.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias) if bias is not None else None
        self.weight_quantizer = quantizer

    @property
    def name(self) -> str:
        """The layer's public name (``acq.network.names``)."""
        return self.weight_quantizer.name

    @property
    def groups(self) -> int:
        """The number of groups of channels; each group has weights of its own."""
        return 1


class QuantLinear(QuantLayer):
    """A linear layer with a quantized weight [K, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., K]."""
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(QuantLayer):
    """A convolution with a quantized weight [K, C / groups, H, W].

    Args:
        weight: As above.
        bias: [K], or None.
        quantizer: The weights' quantizer.
        geometry: Stride, padding, dilation and groups by name, as ``torch.nn.functional.conv2d`` takes them.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, quantizer: WeightQuantizer, geometry: dict[str, Any]
    ) -> None:
        super().__init__(weight, bias, quantizer)
        self.geometry = geometry

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return int(self.geometry.get("groups", 1))

    @property
    def stride(self) -> tuple[int, int]:
        """Down and across."""
        return pair(self.geometry.get("stride", 1))

    @property
    def dilation(self) -> tuple[int, int]:
        """Down and across."""
        return pair(self.geometry.get("dilation", 1))

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Zeros around the input: top, left, bottom, right."""
        return pads_around(self.geometry.get("padding", 0), self.weight.shape[2:], self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W']."""
        y: Tensor = F.conv2d(x, self.weight_quantizer(self.weight), self.bias, **self.geometry)
        return y


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An operator's argument for both axes as one number per axis."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def pads_around(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The zeros that a convolution adds to its input: top, left, bottom, right.

    Args:
        padding: As ``torch.nn.functional.conv2d`` takes it; with ``same`` the stride is 1.
        kernel: Height and width of the kernel.
        dilation: Down and across.
    """
    if padding == "same":  # an odd zero goes to the bottom and the right, as in torch
        down, across = (step * (size - 1) for step, size in zip(dilation, kernel, strict=True))
        return down // 2, across // 2, down - down // 2, across - across // 2
    down, across = (0, 0) if isinstance(padding, str) else pair(padding)
    return down, across, down, across


def squares_per_input(layer: QuantLayer) -> Tensor:
    """The sum of squared weights of each input channel, in a shape that broadcasts with the input."""
    per_channel = _by_group(layer, layer.weight.detach()).square().sum((1, 3)).flatten()  # [C]
    return per_channel if isinstance(layer, QuantLinear) else per_channel.view(-1, *(1,) * (layer.weight.dim() - 2))


def scale_input_channels(layer: QuantLayer, weight: Tensor, factor: Tensor) -> Tensor:
    """Multiply the weights of each input channel by a factor.

    Args:
        layer: The layer, for its groups.
        weight: [K, C / groups, ...].
        factor: One factor per input channel, [C].

    Returns:
        The scaled weights, with the shape of ``weight``.
    """
    return (_by_group(layer, weight) * factor.view(layer.groups, 1, -1, 1)).view_as(weight)


def _by_group(layer: QuantLayer, weight: Tensor) -> Tensor:
    """Weights [K, C / G, ...] as [G, K / G, C / G, n]."""
    return weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1)
