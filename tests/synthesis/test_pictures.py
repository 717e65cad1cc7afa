from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acq.core.values import Preprocessing
from acq.network.teacher import Teacher
from acq.network.trace import trace
from acq.synthesis.pictures import pictures, reads
from acq.synthesis.scenes import scenes
from acq.synthesis.strokes import strokes

SIZE = (1, 24, 48)
KNOWN = Preprocessing(SIZE, (0.5,), (0.25,))
CPU = torch.device("cpu")


class Edges(nn.Module):
    """Whether an image has many sharp edges, which few scenes of this size have."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Conv2d(1, 1, (1, 2), bias=False)
        self.edge.weight.data = torch.tensor([[[[-1.0, 1.0]]]])

    def forward(self, x: Tensor) -> Tensor:
        sharp = torch.clamp(10 * (torch.abs(self.edge(x)) - 0.95), 0, 1).mean((2, 3))
        return 1000 * torch.cat((sharp - 0.06, 0.06 - sharp), 1)


class Brightness(nn.Module):
    """Bright or dark, which scenes and drawings tell alike."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        return 20 * torch.cat((mean, -mean), 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_drawings_all_are_scenes() -> None:
    """The pictures are the scenes of the random state, bit for bit."""
    assert torch.equal(pictures(5, SIZE, rng()), scenes(5, SIZE, rng()))


@pytest.mark.parametrize(("drawn", "drawings"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_share_of_drawings_is_as_asked(drawn: float, drawings: int) -> None:
    """So many of the pictures are drawings, in an order of their own, and the others are scenes."""
    found, state = pictures(8, SIZE, rng(), drawn), rng()
    made = [make(number, SIZE, state) for make, number in ((scenes, 8 - drawings), (strokes, drawings)) if number]
    expected = torch.cat(made)
    assert torch.equal(found.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


def test_a_network_of_edges_reads() -> None:
    """Its answers vary more over drawings than over scenes."""
    assert reads(Teacher(trace(Edges().eval(), SIZE)), KNOWN, CPU)


def test_a_network_of_brightness_does_not_read() -> None:
    """Scenes tell its answers apart as drawings do."""
    assert not reads(Teacher(trace(Brightness().eval(), SIZE)), KNOWN, CPU)


def test_values_are_not_read() -> None:
    """A network that names nothing tells nothing by answers, so its images start as scenes."""
    teacher = Teacher(trace(Edges().eval(), SIZE, None, ("values",)))
    assert not reads(teacher, KNOWN, CPU)
