"""Draw what the generator is asked for."""

from __future__ import annotations

import torch

from acq.core.values import Condition


def draw(pairs: int, *, noise_dim: int, classes: int, spread: float, rng: torch.Generator) -> Condition:
    """``2 * pairs`` conditions: entries ``i`` and ``i + pairs`` share label and centre and differ in noise.

    Labels are uniform and as balanced as the number of pairs allows; centres are normal with standard deviation
    ``spread`` on each axis, cut to [-1, 1] (this project's definition); noise is standard normal.
    """
    device = rng.device
    first = torch.randint(classes, (), generator=rng, device=device)
    order = torch.randperm(pairs, generator=rng, device=device)
    label = ((order + first) % classes).repeat(2)
    centre = torch.randn(pairs, 2, generator=rng, device=device).mul(spread).clamp(-1, 1).repeat(2, 1)
    noise = torch.randn(2 * pairs, noise_dim, generator=rng, device=device)
    return Condition(noise, label, centre)
