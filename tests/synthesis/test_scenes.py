from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acq.core.values import Preprocessing
from acq.synthesis.scenes import SceneModel, normalised_scenes, scenes, texture

SLOPES = (0.8, 2.2)  # bounds of the slope of a background


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kurtosis(x: Tensor) -> Tensor:
    """Fourth moment in units of the squared second: 3 for a normal, more for heavier tails."""
    return x.pow(4).mean() / x.square().mean().square()


@settings(max_examples=25)
@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(4, 33),
    width=st.integers(4, 33),
    seed=st.integers(0, 99),
)
def test_scenes_and_textures_are_pixels(count: int, channels: int, height: int, width: int, seed: int) -> None:
    """Scenes and textures of any size lie in [0, 1]."""
    size = channels, height, width
    for x in (scenes(count, size, rng(seed)), texture(count, size, rng(seed), SLOPES)):
        assert x.shape == (count, channels, height, width)
        assert x.dtype == torch.float32
        assert (x >= 0).all()
        assert (x <= 1).all()


def test_one_seed_one_set_of_scenes() -> None:
    """Equal random states give equal scenes, whatever the global seed, and another state gives others."""
    first = scenes(3, (3, 9, 12), rng(5))
    torch.manual_seed(99)
    assert torch.equal(scenes(3, (3, 9, 12), rng(5)), first)
    assert not torch.equal(scenes(3, (3, 9, 12), rng(6)), first)


def test_normalised_scenes_are_scenes_as_a_network_takes_them() -> None:
    """Denormalised again, they are the scenes of the same random state."""
    known = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
    found = normalised_scenes(3, known, rng(2))
    pixels = scenes(3, (3, 8, 8), rng(2))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (known.mean, known.std))
    torch.testing.assert_close(found * std + mean, pixels)


@pytest.mark.parametrize("count", [256, 257])
def test_any_number_of_scenes_is_drawn(count: int) -> None:
    """Each of the requested scenes is another one, however many are drawn at once."""
    x = scenes(count, (1, 8, 8), rng())
    assert x.shape == (count, 1, 8, 8)
    assert len(x.flatten(1).unique(dim=0)) == count


def test_a_scene_without_shapes_is_its_background() -> None:
    """The model's constants can be changed, and without shapes only the background's texture is left."""
    found = scenes(3, (3, 9, 12), rng(1), SceneModel(shapes=0))
    assert torch.equal(found, texture(3, (3, 9, 12), rng(1), SceneModel().background_slope))
    assert not torch.equal(found, scenes(3, (3, 9, 12), rng(1)))


def test_more_scenes_begin_with_the_same_ones() -> None:
    """The first chunk of scenes does not depend on how many follow it."""
    assert torch.equal(scenes(300, (1, 8, 8), rng())[:256], scenes(256, (1, 8, 8), rng()))


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_texture_s_amplitude_falls_as_its_slope_says(slope: float, size: tuple[int, int]) -> None:
    """A line through log amplitude over log frequency has the requested slope, where no pixel is clipped."""
    x = texture(64, (1, *size), rng(), slope=(slope, slope))
    x = x[(x.amin((1, 2, 3)) > 0) & (x.amax((1, 2, 3)) < 1)]
    assert len(x) > 10
    frequency = (torch.fft.fftfreq(size[0]).view(-1, 1).square() + torch.fft.rfftfreq(size[1]).square()).sqrt()
    amplitude = torch.fft.rfft2(x).abs().log().mean((0, 1))
    across, up = (values[:, 1:-1].flatten() for values in (frequency.log(), amplitude))
    pair = torch.stack((across, up)).cov()
    torch.testing.assert_close(pair[0, 1] / pair[0, 0], torch.tensor(-slope), rtol=0, atol=0.05)


def test_steeper_textures_are_smoother() -> None:
    """The share of low frequencies in the energy grows with the slope."""
    ratios = []
    for slope in (0.0, 1.0, 2.0):
        energy = torch.fft.rfft2(texture(32, (3, 32, 32), rng(), slope=(slope, slope))).abs().square().mean((0, 1))
        ratios.append(float(energy[1:4, 1:4].mean() / energy[10:16, 10:16].mean()))
    assert 0.5 < ratios[0] < 2
    assert ratios[1] > 10 * ratios[0]
    assert ratios[2] > 10 * ratios[1]


def test_channels_rise_and_fall_together() -> None:
    """Channels of a texture are correlated, but not equal."""
    x = texture(64, (3, 16, 16), rng(), SLOPES).flatten(2)
    correlation = torch.stack([picture.corrcoef()[0, 1] for picture in x])
    assert 0.4 < correlation.mean() < 0.95
    assert correlation.std() > 0.1


def test_scenes_differ() -> None:
    """No two scenes are near one another, brightness and contrast vary, and none is blank."""
    x = scenes(64, (3, 16, 16), rng())
    assert torch.pdist(x.flatten(1)).min() / (3 * 16 * 16) ** 0.5 > 0.05
    assert x.mean((1, 2, 3)).std() > 0.04
    contrast = x.std((1, 2, 3))
    assert contrast.min() > 0.05
    assert contrast.std() > 0.02


def test_scenes_have_edges() -> None:
    """Neighbours in a scene differ with heavier tails than in a texture of the same slopes."""
    scene, plain = scenes(64, (1, 32, 32), rng()), texture(64, (1, 32, 32), rng(), SLOPES)
    tails = [kurtosis((x / x.std((2, 3), keepdim=True)).diff(dim=3)) for x in (scene, plain)]
    assert tails[0] > 1.5 * tails[1]


def test_shapes_are_anywhere() -> None:
    """Over many scenes no place is brighter or more varied than another."""
    x = scenes(512, (1, 8, 8), rng())
    assert x.mean((0, 1)).std() < 0.03
    assert x.std((0, 1)).max() < 1.3 * x.std((0, 1)).min()
