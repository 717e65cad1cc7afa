"""Where a network looks: attention maps and their centres. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def class_activation(features: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Sharpened class activation map of each image's answer (Zhou et al., arXiv 1512.04150).

    The map weighs the features with the row of the linear head for that answer. It is shifted to a minimum of zero and
    squared, so a flat background does not pull the centre to the middle (this project's definition).

    Args:
        features: [N, C, H, W].
        weight: Of each answer, [A, C]: the rows of the head.
        label: [N].

    Returns:
        Maps that sum to one, [N, H, W].
    """
    evidence = torch.einsum("nchw,nc->nhw", features, weight[label])
    return _normalised((evidence - evidence.amin((1, 2), keepdim=True)).square())


def channel_energy(features: Tensor) -> Tensor:
    """Mean of squares over channels (Zagoruyko and Komodakis, arXiv 1612.03928): [N, C, H, W] -> [N, H, W].

    It serves heads other than pooling and one linear layer, and is sharpened like the class activation map.
    """
    energy = features.square().mean(1)
    return _normalised((energy - energy.amin((1, 2), keepdim=True)).square())


def centre_of(attention: Tensor) -> Tensor:
    """Mass-weighted mean coordinate (x, y) of maps that sum to one: [N, H, W] -> [N, 2].

    The image spans [-1, 1] on both axes and a cell counts at its middle. So the value does not depend on the resolution
    (this project's definition).
    """
    height, width = attention.shape[1:]
    x = (attention.sum(1) * cell_middles(width).to(attention)).sum(1)
    y = (attention.sum(2) * cell_middles(height).to(attention)).sum(1)
    return torch.stack((x, y), 1)


def cell_middles(cells: int) -> Tensor:
    """Coordinates of the middles of ``cells`` equal cells of [-1, 1]: [cells]."""
    return (2 * torch.arange(cells) + 1) / cells - 1


def _normalised(mass: Tensor) -> Tensor:
    """Divide by the sum; a map of zeros becomes uniform."""
    mass = mass + torch.finfo(mass.dtype).tiny * 1e8
    return mass / mass.sum((1, 2), keepdim=True)
