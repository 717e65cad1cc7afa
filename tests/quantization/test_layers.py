from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from acq.quantization.layers import QuantConv2d, QuantLinear, pads_around, pair, scale_input_channels, squares_per_input
from acq.quantization.quantizers import WeightQuantizer


def convolution(weight: torch.Tensor, **geometry: object) -> QuantConv2d:
    return QuantConv2d(weight, torch.randn(len(weight)), WeightQuantizer(len(weight), 4, "layer1.conv"), geometry)


def test_layers_run_on_fake_quantized_weights() -> None:
    """The output is the operator's on the quantizer's weights; the layer has the quantizer's name."""
    layer = convolution(torch.randn(6, 2, 3, 3), stride=[2, 2], padding=1, groups=2)
    layer.weight_quantizer.set_qparams(torch.full((6,), 0.2))
    x, weight = torch.randn(2, 4, 8, 8), layer.weight_quantizer(layer.weight)
    assert torch.equal(layer(x), F.conv2d(x, weight, layer.bias, 2, 1, groups=2))
    assert layer.name == "layer1.conv"
    linear = QuantLinear(torch.randn(5, 4), None, WeightQuantizer(5, 4))
    linear.weight_quantizer.set_qparams(torch.full((5,), 0.2))
    x = torch.randn(2, 3, 4)
    assert torch.equal(linear(x), F.linear(x, linear.weight_quantizer(linear.weight)))


def test_geometry_is_one_number_per_axis() -> None:
    """Arguments for both axes and for one axis each are read alike; missing ones have torch's default."""
    layer = convolution(torch.randn(6, 2, 3, 5), stride=2, padding=[0, 1], dilation=[1, 2], groups=2)
    assert (layer.stride, layer.dilation, layer.groups, layer.pads) == ((2, 2), (1, 2), 2, (0, 1, 0, 1))
    layer = convolution(torch.randn(6, 2, 3, 5))
    assert (layer.stride, layer.dilation, layer.groups, layer.pads) == ((1, 1), (1, 1), 1, (0, 0, 0, 0))
    assert pair([3]) == pair(3) == (3, 3)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), (1, 1)), ((2, 4), (1, 1)), ((3, 2), (2, 3))])
def test_same_padding_is_torchs(kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
    """An odd zero goes to the bottom and the right."""
    x, weight = torch.randn(1, 1, 9, 9), torch.randn(1, 1, *kernel)
    top, left, bottom, right = pads_around("same", kernel, dilation)
    padded = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, dilation=dilation)
    torch.testing.assert_close(padded, F.conv2d(x, weight, padding="same", dilation=dilation))
    assert pads_around("valid", kernel, dilation) == (0, 0, 0, 0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scaled_weights_scale_the_input(groups: int) -> None:
    """Multiplying weights per input channel is the same as multiplying the input's channels."""
    weight, factor, x = torch.randn(8, 4 // groups, 3, 3), torch.rand(4) + 0.5, torch.randn(2, 4, 6, 6)
    scaled = scale_input_channels(convolution(weight, groups=groups), weight, factor)
    wanted = F.conv2d(x * factor.view(1, -1, 1, 1), weight, groups=groups)
    torch.testing.assert_close(F.conv2d(x, scaled, groups=groups), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_squares_per_input_are_what_an_error_costs(groups: int) -> None:
    """An error in one input channel of a convolution adds its square times the channel's to the output's squares."""
    layer = QuantConv2d(torch.randn(8, 4 // groups, 1, 1), None, WeightQuantizer(8, 8), {"groups": groups})
    error = torch.randn(2, 4, 3, 3)
    apart = torch.stack(
        [
            F.conv2d(error * (torch.arange(4) == c).view(4, 1, 1), layer.weight, groups=groups).square().sum()
            for c in range(4)
        ]
    )
    torch.testing.assert_close((squares_per_input(layer) * error.square()).sum((0, 2, 3)), apart)


def test_squares_per_input_of_a_linear_layer_are_those_of_its_columns() -> None:
    """They broadcast with the last axis."""
    layer = QuantLinear(torch.randn(3, 5), None, WeightQuantizer(3, 8))
    torch.testing.assert_close(squares_per_input(layer), layer.weight.square().sum(0))
