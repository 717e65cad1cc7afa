from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acq.synthesis.strokes import StrokeModel, strokes

SIZE = (3, 24, 96)
FULL = StrokeModel(start=(0.0, 0.0), end=(1.4, 1.4), blank=0.0)  # every cell has a sign


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inked(x: Tensor) -> Tensor:
    """How far each pixel is from its image's commonest colour, which is the ground's, [N, H, W]."""
    return (x - x.flatten(2).mode(2).values[..., None, None]).abs().amax(1)


@settings(max_examples=25)
@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    seed=st.integers(0, 99),
)
def test_drawings_are_pixels(count: int, channels: int, height: int, width: int, seed: int) -> None:
    """Drawings of any size lie in [0, 1]."""
    x = strokes(count, (channels, height, width), rng(seed))
    assert x.shape == (count, channels, height, width)
    assert x.dtype == torch.float32
    assert (x >= 0).all()
    assert (x <= 1).all()


def test_one_seed_one_set_of_drawings() -> None:
    """Equal random states give equal drawings, whatever the global seed, and another state gives others."""
    first = strokes(3, SIZE, rng(5))
    torch.manual_seed(99)
    assert torch.equal(strokes(3, SIZE, rng(5)), first)
    assert not torch.equal(strokes(3, SIZE, rng(6)), first)


@pytest.mark.parametrize("count", [64, 65])
def test_any_number_of_drawings_is_made(count: int) -> None:
    """Each is another one, and the first chunk does not depend on how many follow it."""
    x = strokes(count, SIZE, rng())
    assert len(x.flatten(1).unique(dim=0)) == count
    assert torch.equal(x[:64], strokes(64, SIZE, rng()))


def test_a_drawing_has_two_colours_and_their_mixtures() -> None:
    """Every pixel lies on the line from the ground's colour to the ink's."""
    for image in strokes(8, SIZE, rng(), FULL):
        pixels = image.flatten(1).T
        _, singular, _ = torch.linalg.svd(pixels - pixels.mode(0).values)
        assert singular[0] > 0.1
        assert singular[1] < 1e-4 * singular[0]


def test_without_signs_a_drawing_is_its_ground() -> None:
    """Where all cells are empty, every pixel has one colour."""
    x = strokes(4, SIZE, rng(), StrokeModel(blank=1.0))
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))


def test_every_cell_has_a_sign_of_its_own() -> None:
    """One line whose cells are as wide as high: each cell holds some ink, and no two hold the same."""
    model = replace(FULL, height=(0.8, 0.8), spacing=1.25, advance=(1.25, 1.25))
    ink = inked(strokes(6, (1, 24, 96), rng(), model)).unflatten(2, (4, 24)).permute(0, 2, 1, 3).flatten(2)
    assert (ink.amax(2) > 0.2).all()
    assert min(torch.pdist(cells).min() for cells in ink) > 0.5


def test_thicker_pens_leave_more_ink() -> None:
    """The share of inked pixels grows with the width of a stroke."""
    shares = [
        (inked(strokes(16, SIZE, rng(), replace(FULL, width=(width, width)))) > 0.01).float().mean()
        for width in (0.05, 0.1, 0.2)
    ]
    assert shares[0] < shares[1] < shares[2]


def test_strokes_are_level_or_upright_unless_they_are_arcs() -> None:
    """Long runs of ink on an axis come with bars and not with arcs."""
    shares = [_with_long_run(replace(FULL, upright=upright, arc=arc)) for upright, arc in ((0.5, 0.0), (0.0, 1.0))]
    assert shares[0] > 0.7
    assert shares[1] < 0.4


def _with_long_run(model: StrokeModel) -> float:
    """The share of drawings, one sign each, that have a straight run of ink over half of the sign."""
    model = replace(model, height=(0.9, 0.9), spacing=1.1, advance=(1.1, 1.1), width=(0.06, 0.06))
    ink = inked(strokes(64, (1, 60, 60), rng(), model)) > 0.1
    return (
        torch.stack([ink.unfold(axis, 27, 1).all(-1).flatten(1).any(1) for axis in (1, 2)]).any(0).float().mean().item()
    )
