"""The loss of accuracy to expect on real images, from the student's divergence on synthetic ones.

The law and its numbers are this project's: ``benchmarks/expected_loss.py`` fits them on all measured runs, and judges
them on networks that were left out (docs/benchmarks/expected_loss.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from acq.training.selection import Selection

_CHANCE = 0.7  # points: standard deviation of a loss on 1,000 test images, of which 5 % get another answer
_ALL = 100.0  # points that a network can lose


@dataclass(frozen=True)
class ExpectedLoss:
    """Top-1 of the teacher minus that of the student on real images, in percentage points.

    Attributes:
        points: The estimate.
        low: Where the range begins that holds the true loss in 90 % of runs; below 0 the student is better.
        high: Where it ends.
    """

    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """``loss = factor * error`` in points. The range is ``loss / spread`` to ``loss * spread``, and 0.7 beyond both."""

    factor: float
    spread: float

    def loss(self, error: float) -> ExpectedLoss:
        """The loss of a student with this relative error (``relative_error``)."""
        points = self._points(error)
        return ExpectedLoss(points, points / self.spread - _CHANCE, min(_ALL, points * self.spread + _CHANCE))

    def needed(self, error: float, loss: float) -> float:
        """The least spread, from 1 on, whose range holds a measured loss in points; infinite where none does."""
        points = self._points(error)
        if points < loss - _CHANCE:
            return (loss - _CHANCE) / points if points else math.inf
        if points > loss + _CHANCE:
            return points / (loss + _CHANCE) if loss > -_CHANCE else math.inf
        return 1.0

    def _points(self, error: float) -> float:
        return min(_ALL, self.factor * error)


FITTED = Law(factor=98, spread=2.21)


def relative_error(divergence: float, logit_spread: float) -> float:
    """About the squared error of a student's logits relative to the variance of the teacher's.

    A small KL divergence is half the variance of the error of the logits, weighted by the teacher's probabilities.
    Larger logits of the same accuracy have a larger divergence, so the divergence alone says little.

    Args:
        divergence: Of the student from the teacher, in nats.
        logit_spread: Standard deviation of the teacher's logits (``Selection.logit_spread``).
    """
    return divergence / logit_spread**2


def expected_loss(selection: Selection) -> ExpectedLoss | None:
    """The loss to expect of the student that was kept.

    Returns:
        None where the run has no first student, the output is no class, or a figure is NaN or 0.
    """
    divergence, spread = selection.candidates[selection.selected].divergence, selection.logit_spread
    if not spread or math.isnan(divergence):
        return None
    return FITTED.loss(relative_error(divergence, spread))
