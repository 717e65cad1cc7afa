from __future__ import annotations

import pytest
import torch
from helpers import SIZE, Chain, images
from torch import Tensor, nn

from acq.network.frozen_norm import as_batch_norm
from acq.network.structure import structure_of
from acq.network.trace import trace


class Constant(nn.Module):
    """A batch norm whose four tensors are buffers, in plain arithmetic."""

    def __init__(self, channels: int, eps: float = 1e-5, slope: float = 1.0, affine: bool = True) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(channels)
        if affine:
            self.register_buffer("weight", torch.rand(channels, generator=rng) + 0.5)
            self.register_buffer("bias", torch.randn(channels, generator=rng))
        self.register_buffer("running_mean", torch.randn(channels, generator=rng))
        self.register_buffer("running_var", torch.rand(channels, generator=rng) * 0.01)
        self.added, self.slope, self.affine = eps, slope, affine

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.running_var + self.added).rsqrt()
        shift = -self.running_mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        y = x * scale[None, :, None, None] + shift[None, :, None, None]
        return torch.where(y > 0, y, y * self.slope)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_a_frozen_batch_norm_is_found_by_its_values(eps: float, affine: bool) -> None:
    """State and values make a batch norm, with the same tensors and the right eps."""
    module = Constant(8, eps, affine=affine).eval()
    norm = as_batch_norm(module)
    assert norm is not None
    assert norm.eps == eps
    assert norm.running_mean is not None
    assert norm.running_mean.data_ptr() == module.get_buffer("running_mean").data_ptr()
    x = images(2, (8, 4, 4))
    with torch.no_grad():
        torch.testing.assert_close(norm(x), module(x), rtol=1e-4, atol=1e-4)


class Vectors(Constant):
    """Takes vectors alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, None, None].flatten(4)).view(len(x), 8)


@pytest.mark.parametrize(
    "module",
    [Constant(8, slope=0.1), Vectors(8), Constant(8, eps=0.3), nn.BatchNorm2d(8), nn.ReLU(), nn.InstanceNorm2d(8)],
    ids=["with a rectifier", "of vectors", "odd eps", "a batch norm", "without state", "instance norm"],
)
def test_other_modules_are_none(module: nn.Module) -> None:
    """A module of the same state that computes anything else is not replaced, nor is torch's own batch norm."""
    assert as_batch_norm(module.eval()) is None


def test_the_statistics_of_frozen_norms_reach_the_structure() -> None:
    """A network of frozen norms is traced with its statistics and numbers, and stays as it was."""
    frozen = Constant(8)
    model = Chain(frozen, nn.ReLU()).eval()
    model.stem[1] = Constant(8, 1e-3)
    graph, x = trace(model, SIZE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
    assert [str(norm.args[3].target) for norm in structure_of(graph).norms] == [
        "stem.1.running_mean",
        "middle.0.running_mean",
    ]
    assert model.middle[0] is frozen
