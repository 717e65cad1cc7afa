from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acq.network.attention import cell_middles, centre_of, channel_energy, class_activation


def delta(height: int, width: int, row: int, column: int) -> Tensor:
    """A map [1, H, W] whose whole mass is in one cell."""
    attention = torch.zeros(1, height, width)
    attention[0, row, column] = 1
    return attention


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (7, 7), (3, 8)])
def test_a_uniform_map_has_its_centre_in_the_middle(height: int, width: int) -> None:
    """Mass spread evenly is centred at (0, 0), whatever the resolution."""
    attention = torch.full((2, height, width), 1 / (height * width))
    torch.testing.assert_close(centre_of(attention), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("size", "cell", "centre"),
    [
        ((4, 4), (0, 0), (-0.75, -0.75)),
        ((4, 4), (3, 1), (-0.25, 0.75)),
        ((2, 5), (0, 4), (0.8, -0.5)),
        ((1, 2), (0, 1), (0.5, 0.0)),
        ((7, 7), (3, 3), (0.0, 0.0)),
    ],
)
def test_mass_in_one_cell_has_that_cell_s_coordinates(
    size: tuple[int, int], cell: tuple[int, int], centre: tuple[float, float]
) -> None:
    """The centre is (x, y) of the cell's middle in [-1, 1], x across and y down."""
    torch.testing.assert_close(centre_of(delta(*size, *cell)), torch.tensor([centre]))


@given(cells=st.integers(1, 40))
def test_cell_middles_are_even_and_symmetric(cells: int) -> None:
    """Middles are ``2 / cells`` apart, half a cell from the edges, and mirror images of one another."""
    middles = cell_middles(cells)
    torch.testing.assert_close(middles, -middles.flip(0))
    torch.testing.assert_close(middles[0], torch.tensor(1 / cells - 1))
    torch.testing.assert_close(middles.diff(), torch.full((cells - 1,), 2 / cells), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_centre_does_not_depend_on_resolution(factor: int) -> None:
    """A map whose cells are each split evenly keeps its centre."""
    attention = torch.rand(5, 4, 6)
    attention /= attention.sum((1, 2), keepdim=True)
    finer = attention.repeat_interleave(factor, 1).repeat_interleave(factor, 2) / factor**2
    torch.testing.assert_close(centre_of(finer), centre_of(attention))


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
def test_maps_are_distributions(seed: int, scale: float) -> None:
    """Both maps are non-negative and sum to one per image, whatever the size and sign of the features."""
    rng = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(3, 4, 5, 2, generator=rng)
    weight, label = torch.randn(6, 4, generator=rng), torch.randint(6, (3,), generator=rng)
    for attention in (class_activation(features, weight, label), channel_energy(features)):
        assert attention.shape == (3, 5, 2)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum((1, 2)), torch.ones(3))


@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_maps_do_not_depend_on_the_size_of_features(seed: int, factor: float) -> None:
    """Features times a positive number give the same map."""
    rng = torch.Generator().manual_seed(seed)
    features, weight = torch.randn(2, 4, 4, 4, generator=rng), torch.randn(3, 4, generator=rng)
    label = torch.tensor([2, 0])
    for read in (lambda x: class_activation(x, weight, label), channel_energy):
        torch.testing.assert_close(read(factor * features), read(features), rtol=1e-3, atol=1e-5)


def test_a_flat_map_is_uniform() -> None:
    """Features that are zero everywhere, or the same everywhere, give a uniform map and not a NaN."""
    weight, label = torch.randn(3, 4), torch.tensor([0, 2])
    for features in (torch.zeros(2, 4, 3, 3), torch.full((2, 4, 3, 3), 2.0)):
        for attention in (class_activation(features, weight, label), channel_energy(features)):
            torch.testing.assert_close(attention, torch.full((2, 3, 3), 1 / 9))
            torch.testing.assert_close(centre_of(attention), torch.zeros(2, 2))


def test_class_activation_is_the_squared_evidence_above_its_least() -> None:
    """The map equals one that is written as loops over images and cells."""
    features, weight, label = torch.randn(2, 3, 2, 4), torch.randn(5, 3), torch.tensor([4, 1])
    for image, found in enumerate(class_activation(features, weight, label)):
        evidence = torch.stack(
            [torch.stack([features[image, :, i, j] @ weight[label[image]] for j in range(4)]) for i in range(2)]
        )
        mass = (evidence - evidence.min()) ** 2
        torch.testing.assert_close(found, mass / mass.sum())


def test_the_map_is_that_of_the_label() -> None:
    """Two classes with one channel each look where their own channel fires."""
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, 0, 0] = features[0, 1, 3, 2] = 1
    weight = torch.eye(2)
    for label, centre in ((0, (-0.75, -0.75)), (1, (0.25, 0.75))):
        attention = class_activation(features, weight, torch.tensor([label]))
        torch.testing.assert_close(centre_of(attention), torch.tensor([centre]))


def test_a_background_does_not_pull_the_centre() -> None:
    """A constant added to the evidence changes nothing."""
    features = torch.rand(2, 3, 4, 4)
    shifted = torch.cat((features, torch.ones(2, 1, 4, 4)), 1)
    weight, label = torch.rand(2, 3), torch.tensor([0, 1])
    wider = torch.cat((weight, torch.full((2, 1), 5.0)), 1)
    torch.testing.assert_close(class_activation(shifted, wider, label), class_activation(features, weight, label))


def test_the_centre_is_differentiable() -> None:
    """Gradients of the centre pass a numerical check with both maps."""
    rng = torch.Generator().manual_seed(3)
    features = torch.randn(2, 3, 3, 3, dtype=torch.double, generator=rng).requires_grad_()
    weight, label = torch.randn(4, 3, dtype=torch.double, generator=rng), torch.tensor([3, 0])
    assert torch.autograd.gradcheck(lambda x: centre_of(class_activation(x, weight, label)), features)
    assert torch.autograd.gradcheck(lambda x: centre_of(channel_energy(x)), features)


def test_gradients_of_a_flat_map_are_finite() -> None:
    """Features without any mass give a finite gradient, so a generator can leave them."""
    features = torch.zeros(2, 3, 3, 3, requires_grad=True)
    centre_of(channel_energy(features)).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
