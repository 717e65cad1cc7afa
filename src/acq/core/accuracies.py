"""What accuracy is called, by the kind of an output, and how far chance may move it."""

from __future__ import annotations

import math
from dataclasses import dataclass

_CONFIDENCE = 1.96  # standard deviations on either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Accuracy:
    """What the accuracy of a kind is called.

    Attributes:
        key: In a summary.
        word: In a line of the command.
        title: On the page.
    """

    key: str
    word: str
    title: str


ACCURACIES: dict[str, Accuracy] = {  # by kind; values have none
    "class": Accuracy("top1", "top-1", "Top-1 accuracy"),
    "multilabel": Accuracy("label_accuracy", "labels", "Accuracy of labels"),
    "map": Accuracy("mean_iou", "mean IoU", "Mean IoU"),
    "sequence": Accuracy("step_accuracy", "steps", "Accuracy of steps"),
}


def accuracy_of(kind: str) -> Accuracy | None:
    """The accuracy of an output (``Output.kind``); None if it has none."""
    return ACCURACIES.get(kind)


def margin(percent: float, count: int) -> float:
    """Half the 95 % confidence interval of an accuracy, in percentage points.

    This is the normal approximation of the binomial distribution: ``1.96 sqrt(p (1 - p) / n)``.

    Args:
        percent: The accuracy p, from 0 to 100.
        count: The number n of test images.
    """
    share = percent / 100
    return 100 * _CONFIDENCE * math.sqrt(share * (1 - share) / count)


def plus_minus(points: float | None) -> str:
    """A margin as text, such as `` ± 1.86``; empty where it is not known, and at 0, where the approximation fails."""
    return f" ± {points:.2f}" if points else ""


def change_margin(lost: int, gained: int, count: int) -> float:
    """Half the 95 % confidence interval of a change of accuracy, in percentage points.

    Both accuracies are of the same images, so only images that one of them alone gets right count:
    ``1.96 sqrt(lost + gained - (gained - lost)^2 / n) / n``, the normal approximation for pairs.

    Args:
        lost: Images that are right before and wrong after.
        gained: Images that are wrong before and right after.
        count: The number n of test images.
    """
    return 100 * _CONFIDENCE * math.sqrt(lost + gained - (gained - lost) ** 2 / count) / count
