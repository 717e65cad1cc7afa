from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acq.core.pixels import denormalise, from_bytes, mean_and_std, normalise, to_bytes
from acq.core.values import Preprocessing

COLOUR = Preprocessing((3, 8, 10), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Preprocessing((1, 8, 10), (0.5,), (0.25,))


def some_bytes(seed: int = 0, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 10, 3), dtype=np.uint8)


def test_normalised_bytes_equal_the_formula() -> None:
    """(bytes / 255 - mean) / std, channel by channel, as contiguous float32 [N, C, H, W]."""
    images = some_bytes()
    expected = (images / 255 - np.array(COLOUR.mean)) / np.array(COLOUR.std)
    given = from_bytes(images, COLOUR)
    assert torch.allclose(given, torch.tensor(expected).permute(0, 3, 1, 2).float(), atol=1e-6)
    assert given.is_contiguous()


def test_bytes_and_pixels_are_normalised_alike() -> None:
    """``from_bytes`` equals ``normalise`` of bytes / 255 bit for bit."""
    images = some_bytes()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    assert torch.equal(from_bytes(images, COLOUR), normalise(pixels, COLOUR))


@given(st.integers(0, 2**32 - 1))
def test_bytes_survive_normalisation(seed: int) -> None:
    """``to_bytes`` is the exact inverse of ``from_bytes``."""
    images = some_bytes(seed, 2)
    assert np.array_equal(to_bytes(from_bytes(images, COLOUR), COLOUR), images)


def test_only_bytes_are_clipped() -> None:
    """``to_bytes`` clips to 0 and 255; ``denormalise`` keeps values outside [0, 1]."""
    images = torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1)
    assert set(np.unique(to_bytes(images, GREY))) == {0, 255}
    assert denormalise(images, GREY).flatten().tolist() == [-24.25, 25.25]


def test_denormalise_undoes_normalise() -> None:
    """Pixels come back up to float32 rounding."""
    pixels = torch.rand(2, 3, 8, 10)
    assert torch.allclose(denormalise(normalise(pixels, COLOUR), COLOUR), pixels, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_std_are_columns_like_a_tensor(dtype: torch.dtype) -> None:
    """Both are [1, C, 1, 1] in the dtype of the tensor."""
    mean, std = mean_and_std(COLOUR, torch.zeros(1, dtype=dtype))
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.dtype == std.dtype == dtype
    assert mean.flatten().tolist() == torch.tensor(COLOUR.mean, dtype=dtype).tolist()
