from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from acq.core.batchnorm import affine_and_moments, at_least_float, batch_norm_affine


def _x(shape: tuple[int, ...], layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 3
    return x.contiguous(memory_format=layout).requires_grad_()


def _vectors(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return (
        torch.randn(channels, dtype=torch.float64, generator=rng),
        torch.randn(channels, dtype=torch.float64, generator=rng),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 1, 3, 3), (1, 4, 2, 2)])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """The affine map and the moments equal torch's own, and gradients to the images pass a numerical check."""
    x = _x(shape, layout)
    factor, shift = _vectors(shape[1])
    y, found = affine_and_moments(x, factor, shift)
    assert torch.allclose(y, x * factor.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    assert torch.allclose(found.mean, mean)
    assert torch.allclose(found.var, var)

    def flat(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, found = affine_and_moments(x, factor, shift)
        return y, found.mean, found.var

    assert torch.autograd.gradcheck(flat, x)


def test_the_layout_is_kept() -> None:
    """Images stored channels last, and their gradients, stay so."""
    x = _x((2, 3, 4, 4), torch.channels_last)
    y, _ = affine_and_moments(x, *_vectors(3))
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_an_affine_stands_for_a_batch_norm(with_weight: bool, with_bias: bool) -> None:
    """Factor and shift give what a batch norm with running statistics gives, with and without weight and bias."""
    x = _x((4, 3, 5, 5))
    weight, bias = _vectors(3)
    mean, var = torch.tensor([1.0, -2.0, 0.0]).double(), torch.tensor([0.5, 2.0, 1e-3]).double()
    given = weight if with_weight else None, bias if with_bias else None
    y, _ = affine_and_moments(x, *batch_norm_affine(*given, mean, var, 1e-5))
    assert torch.allclose(y, F.batch_norm(x, mean, var, *given, False, 0.1, 1e-5))


def test_numbers_get_at_least_32_bits() -> None:
    """Half precision is widened, and double precision is kept."""
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        assert at_least_float(torch.ones(2, dtype=given)).dtype == expected


def test_moments_far_from_zero_are_exact() -> None:
    """A variance of 1e-4 around a mean of 100 keeps three digits in 32 bits."""
    x = (_x((64, 2, 16, 16)).detach() * 1e-2 + 100).float()
    _, found = affine_and_moments(x, torch.ones(2), torch.zeros(2))
    expected = x.double().var((0, 2, 3), correction=0)
    assert torch.allclose(found.var.double(), expected, rtol=1e-3)
