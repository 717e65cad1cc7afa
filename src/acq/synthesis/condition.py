"""Draw what images are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from acq.core.outputs import Output
from acq.core.values import Condition, Preprocessing
from acq.network.teacher import Teacher
from acq.synthesis.scenes import normalised_scenes

_SCENES, _SEED = 64, 0  # on which the usual answers are counted


@dataclass(frozen=True)
class ConditionSampler:
    """Draws conditions for one network.

    Attributes:
        noise_dim: Noise values per image.
        output: How the network decides, and so what an image can be asked for.
        centre_std: Standard deviation of requested attention centres on each axis, in half image sizes.
        usual: The answer that each place gets most often; empty where the network answers for images as a whole.
    """

    noise_dim: int
    output: Output
    centre_std: float
    usual: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def draw(self, pairs: int, rng: torch.Generator) -> Condition:
        """Draw ``2 * pairs`` conditions. Entries ``i`` and ``i + pairs`` share label and centre and differ in noise.

        Labels are uniform and as balanced as the number of pairs allows; those of maps and sequences are as
        ``acq.core.scores.Scores.drawn`` says. Centres are normal, clipped to [-1, 1] (this project's definition). Noise
        is standard normal.

        Args:
            pairs: Half the number of conditions.
            rng: Random state, which advances.
        """
        device = rng.device
        label = self.output.drawn(pairs, self.usual.to(device), rng)
        centre = torch.randn(pairs, 2, generator=rng, device=device).mul(self.centre_std).clamp(-1, 1).repeat(2, 1)
        noise = torch.randn(2 * pairs, self.noise_dim, generator=rng, device=device)
        return Condition(noise, label, centre)


def usual_answers(teacher: Teacher, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """The answer that scenes get most often at each place, [Q]; empty where images are one place, or nothing is asked.

    Args:
        teacher: The network, on ``device``.
        preprocessing: Of its images.
        device: Where the scenes are made.
    """
    output = teacher.output
    if output.whole is not None or not output.asks:
        return torch.zeros(0, dtype=torch.long, device=device)
    rng = torch.Generator(device).manual_seed(_SEED)
    with torch.no_grad():
        rows = [teacher.logits(normalised_scenes(1, preprocessing, rng)) for _ in range(_SCENES)]
    return output.usual(torch.cat(rows))
