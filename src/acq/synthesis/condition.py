"""Draw what the generator is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acq.core.values import Condition


@dataclass(frozen=True)
class ConditionSampler:
    """Draws conditions for one network.

    Attributes:
        noise_dim: Noise values per image.
        answers: Answers of the network that an image can be asked for.
        centre_std: Standard deviation of requested attention centres on each axis, in half image sizes.
    """

    noise_dim: int
    answers: int
    centre_std: float

    def draw(self, pairs: int, rng: torch.Generator) -> Condition:
        """Draw ``2 * pairs`` conditions. Entries ``i`` and ``i + pairs`` share label and centre and differ in noise.

        Labels are uniform and as balanced as the number of pairs allows. Centres are normal, clipped to [-1, 1] (this
        project's definition). Noise is standard normal.
        """
        device = rng.device
        first = torch.randint(self.answers, (), generator=rng, device=device)
        order = torch.randperm(pairs, generator=rng, device=device)
        label = ((order + first) % self.answers).repeat(2)
        centre = torch.randn(pairs, 2, generator=rng, device=device).mul(self.centre_std).clamp(-1, 1).repeat(2, 1)
        noise = torch.randn(2 * pairs, self.noise_dim, generator=rng, device=device)
        return Condition(noise, label, centre)
