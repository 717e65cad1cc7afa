from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acq.quantization.fake_quantize import fake_quantize, round_significant
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer

ZERO = torch.tensor(0.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_the_forward(bits: int) -> None:
    """integers(w) * scale is forward(w), and the integers fit their width."""
    weight, quantizer = torch.randn(5, 3, 3, 3), WeightQuantizer(5, bits)
    quantizer.set_qparams(torch.rand(5) * 0.5 + 0.1)
    integers = quantizer.integers(weight)
    assert integers.dtype == torch.int8
    assert integers.min().item() >= -(2 ** (bits - 1))
    assert integers.max().item() < 2 ** (bits - 1)
    assert torch.equal(integers * quantizer.scale.view(-1, 1, 1, 1), quantizer(weight))


@pytest.mark.parametrize("quantizer", [WeightQuantizer(3, 4, "layer1"), ActivationQuantizer(4, "layer1")])
def test_uncalibrated_use_is_refused(quantizer: WeightQuantizer | ActivationQuantizer) -> None:
    """A quantizer without a range names itself and the way out; while disabled it passes values through."""
    with pytest.raises(RuntimeError, match=r"'layer1' has no range yet; call calibrate"):
        quantizer(torch.ones(3, 2))
    quantizer.enabled = False
    assert torch.equal(quantizer(torch.ones(3, 2)), torch.ones(3, 2))


def test_state_round_trips() -> None:
    """A fresh quantizer with a calibrated one's state dict, or a deep copy of it, gives the same values."""
    x, quantizer = torch.randn(50), ActivationQuantizer(3)
    quantizer.set_qparams(torch.tensor(0.3), torch.tensor(4.0))
    fresh = ActivationQuantizer(3)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), quantizer(x))
    assert torch.equal(copy.deepcopy(quantizer)(x), quantizer(x))
    weights = WeightQuantizer(50, 3)
    weights.set_qparams(torch.rand(50) + 0.1)
    again = WeightQuantizer(50, 3)
    again.load_state_dict(weights.state_dict())
    assert torch.equal(again(x), weights(x))


@pytest.mark.parametrize("zero_point", [-1.0, 16.0, 2.5, float("nan")])
def test_the_zero_point_must_be_an_integer_in_range(zero_point: float) -> None:
    """A zero point that would make zero inexact is refused."""
    with pytest.raises(ValueError, match="zero point"):
        ActivationQuantizer(4).set_qparams(torch.tensor(0.1), torch.tensor(zero_point))


def test_observing_passes_through_and_keeps_a_bounded_sample() -> None:
    """While observing, the output is the input; size + 2 values per batch are kept, with its extremes."""
    quantizer, x = ActivationQuantizer(4), torch.randn(1000)
    quantizer.observe(50, torch.Generator().manual_seed(0))
    assert quantizer(x) is x
    quantizer(x + 1)
    kept, importance = quantizer.observed()
    assert torch.equal(importance, torch.ones(104))
    assert kept.numel() == 104
    assert kept.min() == x.min()
    assert kept.max() == (x + 1).max()


@pytest.mark.parametrize("size", [10, 10_000])
def test_each_value_keeps_its_channel_s_importance(size: int) -> None:
    """Whether all values are kept or a part of them, each has the importance of its own channel."""
    channel = torch.arange(3.0).view(3, 1, 1)
    quantizer, x = ActivationQuantizer(8), channel.expand(2, 3, 5, 5) + 0.1 * torch.rand(2, 3, 5, 5)
    quantizer.observe(size, torch.Generator().manual_seed(0), 10 * channel)
    quantizer(x)
    values, importance = quantizer.observed()
    assert len(values) == (size + 2 if size < x.numel() else x.numel())
    assert torch.equal(10 * values.floor(), importance)


def test_integers_are_those_of_the_output() -> None:
    """Ties, values beyond the range and infinite ones included."""
    quantizer = ActivationQuantizer(4)
    quantizer.set_qparams(torch.tensor(0.5), torch.tensor(3.0))
    x = torch.tensor([-torch.inf, -9.0, -0.75, -0.25, 0.0, 0.25, 0.75, 2.6, 9.0, torch.inf])
    integers = quantizer.integers(x)
    assert integers.dtype == torch.uint8
    assert torch.equal((integers.float() - 3) * 0.5, quantizer(x))


def test_a_single_number_is_kept_too() -> None:
    """A graph may hold one number without dimensions, such as a constant that a mask is filled with."""
    quantizer = ActivationQuantizer(8)
    quantizer.observe(10, torch.Generator().manual_seed(0))
    quantizer(torch.tensor(3.0))
    assert [part.tolist() for part in quantizer.observed()] == [[3.0], [1.0]]


@pytest.mark.parametrize("start", [0.02, 0.5])
def test_a_learned_scale_finds_the_least_error(start: float) -> None:
    """Gradient descent on log_scale alone reaches the error of the best scale from far away on both sides."""
    x, quantizer = torch.randn(4000), WeightQuantizer(1, 3)
    quantizer.set_qparams(torch.tensor([start]))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        ((quantizer(x[None]) - x) ** 2).mean().backward()
        optimizer.step()
    scales = torch.linspace(0.05, 1.5, 100)
    best = min(((fake_quantize(x, scale, ZERO, -4, 3) - x) ** 2).mean() for scale in scales)
    assert ((quantizer(x[None]) - x) ** 2).mean() < 1.1 * best


@given(st.integers(-40, 19))
def test_a_power_of_two_scale_is_exact(exponent: int) -> None:
    """The scale of activations is exact although its logarithm is rounded, and it is not learned."""
    quantizer = ActivationQuantizer(8, power_of_two_scales=True)
    quantizer.set_qparams(torch.tensor(2.0**exponent), torch.tensor(128.0))
    assert quantizer.scale.item() == 2.0**exponent
    assert not quantizer.scale.requires_grad


def test_a_power_of_two_scale_needs_an_even_zero_point() -> None:
    """With an odd one, an engine that adds it before rounding would round ties differently."""
    quantizer = ActivationQuantizer(8, power_of_two_scales=True)
    with pytest.raises(ValueError, match="is not an even integer"):
        quantizer.set_qparams(torch.tensor(0.5), torch.tensor(127.0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_short_scales_of_weights_are_exact(bits: int) -> None:
    """A scale has 12 - bits binary digits, and stays the same although its logarithm is rounded; it is learned."""
    quantizer = WeightQuantizer(200, bits, power_of_two_scales=True)
    quantizer.set_qparams(torch.rand(200) + 1e-3)
    scale = quantizer.scale.detach()
    assert torch.equal(scale, round_significant(scale, 12 - bits))
    quantizer.set_qparams(scale)
    assert torch.equal(quantizer.scale, scale)
    assert quantizer.scale.requires_grad


@pytest.mark.parametrize("enabled", [True, False])
def test_channels_are_divided_first(enabled: bool) -> None:
    """With a channel scale the output is in its unit, whether the quantizer is enabled or not."""
    quantizer, x = ActivationQuantizer(8, channels=3), torch.rand(2, 3, 4, 4)
    quantizer.set_qparams(torch.tensor(1 / 255), torch.tensor(0.0))
    assert quantizer.channel_scale is not None
    quantizer.channel_scale.copy_(torch.tensor([1.0, 0.5, 0.25]))
    quantizer.enabled = enabled
    divided = x * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    torch.testing.assert_close(quantizer(x / 4), divided / 4, rtol=0, atol=(0.5001 / 255 if enabled else 0.0))
