"""What accuracy is called, by the kind of an output."""

from __future__ import annotations

from dataclasses import dataclass


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
