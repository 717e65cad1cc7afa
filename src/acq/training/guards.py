"""Does training go wrong? Losses that are no numbers, ranges that blow up, a generator that collapses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from acq.core.values import TeacherOutput

_RANGE = 4.0  # times as wide or as narrow since the last good state
_FALLEN = 0.4  # of the best running mean
_PROVED = 0.5  # what a running mean must have reached before its fall says anything
_PACE = 0.1  # of the running means, a step


def nonfinite_losses(parts: Mapping[str, Tensor]) -> str | None:
    """The losses, where one of them is no finite number; else None."""
    if not parts or bool(torch.stack([part.detach().float() for part in parts.values()]).isfinite().all()):
        return None
    return "losses " + ", ".join(f"{name} {part.item():.3g}" for name, part in parts.items())


def changed_range(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """The range that is more than four times as wide or as narrow in ``now`` as in ``before``, both a student's state;
    else None (the factor is this project's definition)."""
    for name, log_scale in now.items():
        if name.endswith("log_scale"):
            change = (log_scale.detach() - before[name]).abs().max().item()
            if not change <= math.log(_RANGE):
                return f"the range of {name.removesuffix('.log_scale')} changed by a factor of {math.exp(change):.3g}"
    return None


class Control:
    """Running means of how far a generator's images follow their condition, and the best that these were.

    ``labels`` is the share of images of the class asked for, ``spread`` the standard deviation of realised centres over
    that of requested ones (this project's definitions).
    """

    def __init__(self) -> None:
        self.means = {"labels": 0.0, "spread": 0.0}
        self.best = dict(self.means)

    def see(self, label: Tensor, centre: Tensor, reading: TeacherOutput) -> str | None:
        """Take a batch in; the mean that has fallen below 0.4 of its best, once labels were above a half; else None.

        Before that a generator has not learned yet, and nothing can fall away.
        """
        asked = centre.std(0).mean().item()
        found = {
            "labels": (reading.logits.argmax(1) == label).float().mean().item(),
            "spread": reading.centre.detach().std(0).mean().item() / asked if asked else 0.0,
        }
        for name, value in found.items():
            self.means[name] += _PACE * (value - self.means[name])
        proved = max(self.best["labels"], self.means["labels"]) > _PROVED
        for name, mean in self.means.items():
            self.best[name] = max(self.best[name], mean) if proved else mean
            if proved and mean < _FALLEN * self.best[name]:
                return f"{name} fell from {self.best[name]:.2f} to {mean:.2f}"
        return None

    def state(self) -> dict[str, dict[str, float]]:
        """Both as numbers."""
        return {"means": dict(self.means), "best": dict(self.best)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go back to what ``state`` gave."""
        self.means, self.best = dict(state["means"]), dict(state["best"])
