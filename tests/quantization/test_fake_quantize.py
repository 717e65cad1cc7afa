from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acq.quantization.fake_quantize import fake_quantize, round_significant

ZERO = torch.tensor(0.0)


def lsq(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Learned step size quantization as its paper writes it, for autograd to differentiate."""
    v = (x / scale).clamp(qmin - zero_point, qmax - zero_point)
    return (v + (v.round() - v).detach()) * scale


@given(st.integers(2, 8), st.integers(0, 3), st.floats(1e-3, 1.0))
def test_values_equal_torch_per_tensor(bits: int, zero_point: int, scale: float) -> None:
    """Every value equals torch.fake_quantize_per_tensor_affine's, bit for bit."""
    x, qmax = torch.randn(5, 999), 2**bits - 1
    mine = fake_quantize(x, torch.tensor(scale), torch.tensor(float(zero_point)), 0, qmax)
    assert torch.equal(mine, torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, qmax))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 50), (6, 4, 3, 3)])
def test_values_equal_torch_per_channel(bits: int, shape: tuple[int, ...]) -> None:
    """Every value equals torch.fake_quantize_per_channel_affine's, bit for bit."""
    x, scale, qmax = torch.randn(shape), torch.rand(6) * 0.3 + 0.01, 2 ** (bits - 1) - 1
    mine = fake_quantize(x, scale, ZERO, -qmax - 1, qmax)
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
    mine = fake_quantize(x, scale.flatten() if axis == 0 else scale, zero, 0, 15)
    theirs = lsq(x, scale, zero, 0, 15)
    for got, wanted in zip(
        torch.autograd.grad(mine, (x, scale), weight),
        torch.autograd.grad(theirs, (x, scale), weight),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("axis", "mixed"), [(None, False), (None, True), (0, True)])
def test_gradients_do_not_depend_on_the_memory_format(axis: int | None, mixed: bool) -> None:
    """With channels last, or with only one of value and gradient so, both gradients are those of contiguous tensors."""
    x, weight = torch.randn(4, 3, 5, 6).double(), torch.randn(4, 3, 5, 6).double()
    scale, zero = torch.full((4,) if axis == 0 else (), 0.1).double().requires_grad_(), torch.tensor(5.0).double()
    found = []
    for stored in (torch.contiguous_format, torch.channels_last):
        value = x.clone(memory_format=stored).requires_grad_()
        grad = weight if mixed else weight.contiguous(memory_format=stored)
        result = fake_quantize(value, scale, zero, 0, 15)
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
def test_levels_are_few_idempotent_and_include_zero(bits: int, scale: float, seed: int) -> None:
    """There are at most 2^bits values; quantizing again changes none; zero is exact; errors are half a step at most."""
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    step, zero, qmax = torch.tensor(scale), torch.tensor(float(seed % 2**bits)), 2**bits - 1
    y = fake_quantize(x, step, zero, 0, qmax)
    assert y.unique().numel() <= 2**bits
    assert torch.equal(fake_quantize(y, step, zero, 0, qmax), y)
    assert fake_quantize(torch.zeros(1), step, zero, 0, qmax).item() == 0
    inside = (x >= -zero * step) & (x <= (qmax - zero) * step)
    assert ((y - x)[inside].abs() <= step * 0.5 * (1 + 1e-4)).all()


@given(st.lists(st.floats(2**-60, 2**60, width=32), min_size=1, max_size=8), st.integers(1, 12))
def test_significant_digits_are_the_nearest(values: list[float], digits: int) -> None:
    """The result has so many digits and is at most half a unit of the last one away; again changes nothing."""
    x = torch.tensor(values)
    rounded = round_significant(x, digits)
    unit = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - digits)
    assert torch.equal(rounded / unit, (rounded / unit).round())
    assert ((rounded - x).abs() <= unit / 2).all()
    assert torch.equal(round_significant(rounded, digits), rounded)


def test_significant_digits_let_gradients_through() -> None:
    """The gradient is that without rounding."""
    x = torch.rand(5, requires_grad=True)
    (round_significant(x, 3) * torch.arange(5.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, torch.arange(5.0))  # type: ignore[arg-type]
