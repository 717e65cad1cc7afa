"""Signs of diverged training: losses that are not finite, ranges that explode, a generator that collapses.

The thresholds are this project's definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from acq.core.outputs import Output
from acq.core.values import TeacherOutput
from acq.quantization.student import Student

_RANGE_CHANGE = 4.0  # largest factor by which a range may change since the last snapshot
_FALLEN = 0.4  # of the best running mean
_LEARNED = 0.5  # running share of correct answers from which a fall counts
_MOMENTUM = 0.1  # of the running means, per look


def nonfinite_losses(losses: Mapping[str, Tensor]) -> str | None:
    """The losses as text if one of them is NaN or infinite; else None."""
    if not losses or bool(torch.stack([value.detach().float() for value in losses.values()]).isfinite().all()):
        return None
    return "losses " + ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())


class RangeGuard:
    """Watches the ranges of a student's quantizers.

    Args:
        student: Whose scales are watched.
    """

    def __init__(self, student: Student) -> None:
        self.student = student
        self.reference: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Take the present scales as the reference."""
        self.reference = {name: value.clone() for name, value in self._log_scales().items()}

    def fault(self) -> str | None:
        """The range that grew or shrank more than four times since ``remember``; else None."""
        for name, log_scale in self._log_scales().items():
            change = (log_scale - self.reference[name]).abs().max().item()
            if not change <= math.log(_RANGE_CHANGE):
                return f"the range of {name.removesuffix('.log_scale')} changed by a factor of {math.exp(change):.3g}"
        return None

    def _log_scales(self) -> dict[str, Tensor]:
        state = self.student.state_dict()
        return {name: value.detach() for name, value in state.items() if name.endswith("log_scale")}


class CollapseDetector:
    """Running means of how closely a generator's images follow their conditions, and the best of these means.

    ``labels`` is the share of images that get the requested answer. ``centres`` is the standard deviation of realised
    centres divided by that of requested ones.

    Args:
        output: How the teacher's logits decide.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.means = {"labels": 0.0, "centres": 0.0}
        self.best = dict(self.means)

    def fault(self, label: Tensor, centre: Tensor, found: TeacherOutput) -> str | None:
        """Add a batch; name the mean that fell below 0.4 of its best value.

        A generator that has not yet learned the labels cannot collapse: a fall counts once the running share of correct
        answers was above a half.

        Args:
            label: Requested answers, [N].
            centre: Requested centres, [N, 2].
            found: The teacher's output for the images.
        """
        requested = centre.std(0).mean().item()
        shares = {
            "labels": self.output.came_true(found.logits, label).float().mean().item(),
            "centres": found.centre.detach().std(0).mean().item() / requested if requested else 0.0,
        }
        for name, value in shares.items():
            self.means[name] += _MOMENTUM * (value - self.means[name])
        learned = max(self.best["labels"], self.means["labels"]) > _LEARNED
        for name, mean in self.means.items():
            self.best[name] = max(self.best[name], mean) if learned else mean
            if learned and mean < _FALLEN * self.best[name]:
                return f"{name} fell from {self.best[name]:.2f} to {mean:.2f}"
        return None

    def state(self) -> dict[str, dict[str, float]]:
        """Both kinds of means."""
        return {"means": dict(self.means), "best": dict(self.best)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Continue from ``state``."""
        self.means, self.best = dict(state["means"]), dict(state["best"])
