"""The loss of accuracy to expect on real images, from the student's relative error on synthetic ones.

The law and its numbers are this project's: ``benchmarks/expected_loss.py`` fits them on all measured runs, and judges
them on networks that were left out (docs/benchmarks/expected_loss.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from acq.core.outputs import Output
from acq.quantization.node_plan import Plan
from acq.training.selection import FIRST, Selection

_CHANCE = 0.7  # points: standard deviation of a loss on 1,000 test images, of which 5 % get another answer
_ALL = 100.0  # points that a network can lose
# of the runs on which the law was judged
_LEAST_BITS, _OF_FEATURES = 3, 0.8


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
    """``loss = factor * error**2`` in points. The range is ``loss / spread`` to ``loss * spread``, and 0.7 beyond both.

    The square stands for what small errors do: they hardly ever change the class.
    """

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
        return min(_ALL, self.factor * error**2)


FITTED = Law(factor=115, spread=2.24)


def relative_error(loss: float, weights: Mapping[str, float]) -> float:
    """The mean relative squared error of a student's logits and features, by the weights of its losses.

    Args:
        loss: The weighted sum of the student's losses (``StudentQuality.loss``).
        weights: Of these losses, by name.
    """
    return loss / sum(weights.values())


def expected_loss(selection: Selection, output: Output, plan: Plan) -> ExpectedLoss | None:
    """The loss to expect of the student that was kept.

    Args:
        selection: Of the student.
        output: How the logits decide.
        plan: Of the student.

    Returns:
        The loss; None where the law was not judged, or the student's error is NaN. It was not judged for

        - runs without a first student, such as those of the presets ``acq`` and ``gdfq``
        - outputs that are no classes
        - 2 bits in any layer, activations that are floats, and the placement ``relu-only``
        - other weights of the student's losses than usual, and networks without features, which have one loss less
    """
    loss, weights = selection.candidates[selection.selected].loss, selection.weights
    judged = (
        FIRST in selection.candidates
        and output.kind == "class"
        and (plan.least_bits or 0) >= _LEAST_BITS
        and plan.placement != "relu-only"
        and not weights["probabilities"]
        and math.isclose(weights["features"], _OF_FEATURES * sum(weights.values()))
    )
    return FITTED.loss(relative_error(loss, weights)) if judged and not math.isnan(loss) else None
