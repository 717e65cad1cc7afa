from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acq.quantization.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    fake_quantize,
    pack,
    round_significant,
    unpack,
)

ZERO = torch.tensor(0.0)


def lsq(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Learned step size quantization as its paper writes it, for autograd to differentiate."""
    v = (x / scale).clamp(qmin - zero_point, qmax - zero_point)
    return (v + (v.round() - v).detach()) * scale


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero_point", [0, 1, 3])
def test_values_equal_torch_per_tensor(bits: int, zero_point: int) -> None:
    """Every value equals torch.fake_quantize_per_tensor_affine's, bit for bit."""
    x, scale, qmax = torch.randn(5, 999), 0.037, 2**bits - 1
    mine = fake_quantize(x, torch.tensor(scale), torch.tensor(float(zero_point)), 0, qmax)
    assert torch.equal(mine, torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, qmax))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(6, 50), (6, 4, 3, 3)])
def test_values_equal_torch_per_channel(bits: int, shape: tuple[int, ...]) -> None:
    """Every value equals torch.fake_quantize_per_channel_affine's, bit for bit."""
    x, scale, qmax = torch.randn(shape), torch.rand(6) * 0.3 + 0.01, 2 ** (bits - 1) - 1
    mine = fake_quantize(x, scale, ZERO, -qmax - 1, qmax, axis=0)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(6, dtype=torch.int32), 0, -qmax - 1, qmax)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("zero_point", [0.0, 5.0])
def test_gradients_equal_the_paper(axis: int | None, zero_point: float) -> None:
    """Both gradients are those of the LSQ formula, differentiated by autograd in double precision."""
    x = torch.randn(4, 3, 5, 5).double().requires_grad_()
    shape = (4, 1, 1, 1) if axis == 0 else ()
    scale = (torch.rand(shape).double() * 0.2 + 0.05).requires_grad_()
    weight, zero = torch.randn(x.shape).double(), torch.tensor(zero_point).double()
    mine = fake_quantize(x, scale.flatten() if axis == 0 else scale, zero, 0, 15, axis)
    theirs = lsq(x, scale, zero, 0, 15)
    for got, wanted in zip(
        torch.autograd.grad(mine, (x, scale), weight),
        torch.autograd.grad(theirs, (x, scale), weight),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_do_not_depend_on_how_values_are_stored(axis: int | None, mixed: bool) -> None:
    """Channels last, or only one of value and gradient so: both gradients are those of contiguous ones."""
    x, weight = torch.randn(4, 3, 5, 6).double(), torch.randn(4, 3, 5, 6).double()
    scale, zero = torch.full((4,) if axis == 0 else (), 0.1).double().requires_grad_(), torch.tensor(5.0).double()
    found = []
    for stored in (torch.contiguous_format, torch.channels_last):
        value = x.clone(memory_format=stored).requires_grad_()
        grad = weight if mixed else weight.contiguous(memory_format=stored)
        result = fake_quantize(value, scale, zero, 0, 15, axis)
        found.append(torch.autograd.grad(result, (value, scale), grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_scale_gradient_is_exact_in_single_precision() -> None:
    """At 8 bits and a million values the scale's float32 gradient agrees with float64 to 0.1 %."""
    x, weight = torch.randn(1 << 20), torch.randn(1 << 20)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        scale = torch.tensor(0.02, dtype=dtype, requires_grad=True)
        y = fake_quantize(x.to(dtype), scale, torch.tensor(128.0, dtype=dtype), 0, 255)
        gradients += torch.autograd.grad(y, scale, weight.to(dtype))
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-3, atol=0.0)


@given(st.integers(2, 8), st.floats(1e-3, 1.0), st.integers(0, 2**31))
def test_grid_is_small_idempotent_and_holds_zero(bits: int, scale: float, seed: int) -> None:
    """At most 2^bits values, unchanged by quantizing again, zero exact, error at most half a step inside."""
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    step, zero, qmax = torch.tensor(scale), torch.tensor(float(seed % 2**bits)), 2**bits - 1
    y = fake_quantize(x, step, zero, 0, qmax)
    assert y.unique().numel() <= 2**bits
    assert torch.equal(fake_quantize(y, step, zero, 0, qmax), y)
    assert fake_quantize(torch.zeros(1), step, zero, 0, qmax).item() == 0
    inside = (x >= -zero * step) & (x <= (qmax - zero) * step)
    assert ((y - x)[inside].abs() <= step * 0.5 * (1 + 1e-4)).all()


def test_axis_must_be_the_first() -> None:
    """An axis other than 0 is refused."""
    with pytest.raises(ValueError, match="axis"):
        fake_quantize(torch.ones(2, 2), torch.ones(2), ZERO, 0, 3, axis=1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_the_forward(bits: int) -> None:
    """integers(w) * scale is forward(w), and they fit their width."""
    weight, quantizer = torch.randn(5, 3, 3, 3), WeightQuantizer(5, bits)
    quantizer.set_qparams(torch.rand(5) * 0.5 + 0.1)
    integers = quantizer.integers(weight)
    assert integers.dtype == torch.int8
    assert integers.min().item() >= -(2 ** (bits - 1))
    assert integers.max().item() < 2 ** (bits - 1)
    assert torch.equal(integers * quantizer.scale.view(-1, 1, 1, 1), quantizer(weight))


@given(st.integers(2, 8), st.lists(st.integers(-128, 127), min_size=0, max_size=40))
def test_packing_is_inverted(bits: int, values: list[int]) -> None:
    """unpack(pack(q)) is q, in ceil(n * bits / 8) bytes."""
    qmax = 2 ** (bits - 1) - 1
    q = torch.tensor(values, dtype=torch.int8).clamp(-qmax - 1, qmax)
    packed = pack(q, bits)
    assert packed.numel() == (len(values) * bits + 7) // 8
    assert torch.equal(unpack(packed, bits, [len(values)]), q)


def test_unpacking_checks_the_size() -> None:
    """Bytes that are too few or too many for the shape are refused."""
    with pytest.raises(ValueError, match="3 bytes do not hold 4 integers of 4 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, [2, 2])


@pytest.mark.parametrize("quantizer", [WeightQuantizer(3, 4, "layer1"), ActivationQuantizer(4, "layer1")])
def test_uncalibrated_use_is_refused(quantizer: WeightQuantizer | ActivationQuantizer) -> None:
    """A quantizer without a range names itself and the way out; disabled, it passes values through."""
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
def test_zero_point_must_be_on_the_grid(zero_point: float) -> None:
    """A zero point that would make zero inexact is refused."""
    with pytest.raises(ValueError, match="zero point"):
        ActivationQuantizer(4).set_qparams(torch.tensor(0.1), torch.tensor(zero_point))


def test_observing_passes_through_and_keeps_a_bounded_sample() -> None:
    """While observing the output is the input; of each batch size + 2 values stay, with its extremes."""
    quantizer, x = ActivationQuantizer(4), torch.randn(1000)
    quantizer.observe(50, torch.Generator().manual_seed(0))
    assert quantizer(x) is x
    quantizer(x + 1)
    kept = quantizer.observed()
    assert kept.numel() == 104
    assert kept.min() == x.min()
    assert kept.max() == (x + 1).max()


@pytest.mark.parametrize("start", [0.02, 0.5])
def test_learned_step_finds_the_least_error(start: float) -> None:
    """Gradient descent on log_scale alone reaches the error of the best step from far away on both sides."""
    x, quantizer = torch.randn(4000), WeightQuantizer(1, 3)
    quantizer.set_qparams(torch.tensor([start]))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        ((quantizer(x[None]) - x) ** 2).mean().backward()
        optimizer.step()
    steps = torch.linspace(0.05, 1.5, 100)
    best = min(((fake_quantize(x, step, ZERO, -4, 3) - x) ** 2).mean() for step in steps)
    assert ((quantizer(x[None]) - x) ** 2).mean() < 1.1 * best


@given(st.lists(st.floats(2**-60, 2**60, width=32), min_size=1, max_size=8), st.integers(1, 12))
def test_significant_digits_are_the_nearest(values: list[float], digits: int) -> None:
    """A number of so many binary digits, no farther than half a unit of the last; once more changes nothing."""
    x = torch.tensor(values)
    rounded = round_significant(x, digits)
    unit = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - digits)
    assert torch.equal(rounded / unit, (rounded / unit).round())
    assert ((rounded - x).abs() <= unit / 2).all()
    assert torch.equal(round_significant(rounded, digits), rounded)


def test_significant_digits_let_gradients_through() -> None:
    """As if nothing had been rounded."""
    x = torch.rand(5, requires_grad=True)
    (round_significant(x, 3) * torch.arange(5.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, torch.arange(5.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("exponent", range(-40, 20))
def test_a_binary_activation_has_a_power_of_two(exponent: int) -> None:
    """Exactly, whatever its logarithm lost; it is not learned."""
    quantizer = ActivationQuantizer(8, power_of_two=True)
    quantizer.set_qparams(torch.tensor(2.0**exponent), torch.tensor(128.0))
    assert quantizer.scale.item() == 2.0**exponent
    assert not quantizer.scale.requires_grad


def test_a_binary_activation_has_an_even_zero_point() -> None:
    """With an odd one an engine that adds it before it rounds would round ties apart."""
    quantizer = ActivationQuantizer(8, power_of_two=True)
    with pytest.raises(ValueError, match="is not an even integer"):
        quantizer.set_qparams(torch.tensor(0.5), torch.tensor(127.0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_binary_weight_has_a_short_scale(bits: int) -> None:
    """Of twelve binary digits less those of its integers, and it is what it was after its logarithm was taken."""
    quantizer = WeightQuantizer(200, bits, power_of_two=True)
    quantizer.set_qparams(torch.rand(200) + 1e-3)
    scale = quantizer.scale.detach()
    assert torch.equal(scale, round_significant(scale, 12 - bits))
    quantizer.set_qparams(scale)
    assert torch.equal(quantizer.scale, scale)
    assert quantizer.scale.requires_grad
