"""Which student is kept: a later one replaces an earlier one only if it is closer to the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from acq.core.evaluate import evaluating
from acq.core.outputs import Output
from acq.quantization.student import Student
from acq.synthesis.dataset import DistillationBatch
from acq.synthesis.losses import weighted_sum
from acq.training.losses import student_losses

FIRST, CALIBRATED, TRAINED = "first", "calibrated", "trained"  # names of candidates, in order
# where the teacher is uncertain, a dead student may have a low divergence, but it hardly agrees
_LEAST_AGREEMENT = 0.5  # of the other's; a better student may agree less often on scenes, which have no clear class
# a dead network has a loss of at most the sum of its weights, and one that is right half the time may have a larger one
_WORSE_AGREEMENT = 0.8
_LEAST_DIVERGENCE = 1e-5  # nats; less is the rounding of numbers, and its factors say nothing
_WORSE_LOSS = 1.1  # smaller differences are chance


@dataclass(frozen=True)
class StudentQuality:
    """How close a student is to the teacher on a set of images, or on several (``over_kinds``).

    Attributes:
        loss: The weighted sum of the student's losses, mean over images.
        agreement: Percentage of images for which student and teacher name the same class, or of labels to which they
            say the same.
        divergence: KL divergence in nats of the student's probabilities from the teacher's, mean over images; of
            values the relative squared error.
    """

    loss: float
    agreement: float
    divergence: float

    def is_better_than(self, other: StudentQuality) -> bool:
        """Whether the divergence is below the other's, and agreement at least half of the other's.

        A student with a divergence is better than one with NaN.
        """
        lower = self.divergence < other.divergence or (math.isnan(other.divergence) and not math.isnan(self.divergence))
        return lower and self.agreement >= _LEAST_AGREEMENT * other.agreement

    def is_worse_than(self, other: StudentQuality) -> bool:
        """Whether the loss is above 1.1 times the other's or NaN, or agreement below 0.8 of the other's."""
        return not self.loss <= _WORSE_LOSS * other.loss or self.agreement < _WORSE_AGREEMENT * other.agreement


@dataclass(frozen=True)
class Selection:
    """The quality of every candidate and of the student that was kept.

    Attributes:
        candidates: Quality by name, in order of training, on augmented synthetic images and on new scenes.
        selected: Name of the candidate that was kept.
        final: Quality of that student after its conversion to integers, on augmented synthetic images alone.
        majority_share: Percentage of the images in the class that the teacher names most often. Of labels, it is the
            agreement of the answer that each gets most often.
        weights: Of the student's losses, by name.
    """

    candidates: Mapping[str, StudentQuality]
    selected: str
    final: StudentQuality
    majority_share: float
    weights: Mapping[str, float]

    def is_at_chance(self, output: Output) -> bool:
        """Whether the student agrees no more often than one that always gives the same answer.

        Never true where the teacher itself nearly always gives the same (``Output.most_majority``).

        Args:
            output: How the logits decide.
        """
        return self.final.agreement <= self.majority_share < output.most_majority

    def state(self) -> dict[str, Any]:
        """All figures as numbers and names."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        """The selection that ``state`` was taken from."""
        candidates = {name: StudentQuality(**quality) for name, quality in state["candidates"].items()}
        final = StudentQuality(**state["final"])
        return cls(candidates, state["selected"], final, state["majority_share"], state["weights"])


def quality(
    student: Student,
    tap: str | None,
    batches: Sequence[DistillationBatch],
    weights: Mapping[str, float],
    output: Output,
) -> StudentQuality:
    """Measure a student.

    Args:
        student: Calibrated.
        tap: The node whose values are the features; None where the network has none.
        batches: Images with the teacher's outputs.
        weights: Of the student's losses, by name.
        output: How the logits decide.
    """
    loss, same, divergence = 0.0, 0.0, 0.0
    with evaluating(student):
        for batch in batches:
            logits, features = student.read_features(batch.images, tap)
            losses = student_losses((logits, features), (batch.logits, batch.features), weights, output)
            loss += len(batch.images) * weighted_sum(losses, weights).item()
            same += output.same(logits, batch.logits).sum().item()
            divergence += len(batch.images) * output.divergence(logits, batch.logits).item()
    count = sum(len(batch.images) for batch in batches)
    return StudentQuality(loss / count, 100 * same / count, divergence / count)


def over_kinds(found: Sequence[StudentQuality]) -> StudentQuality:
    """The quality of a student on several kinds of images, each of which counts alike.

    Loss and agreement are means. The divergence is the geometric mean, so only the factor by which it changes on each
    kind counts, however large it is there (this project's definition).

    Args:
        found: The quality on each kind, at least one.

    Returns:
        The quality over all kinds.
    """
    loss, agreement = (sum(values) / len(found) for values in ([q.loss for q in found], [q.agreement for q in found]))
    product = math.prod(max(q.divergence, _LEAST_DIVERGENCE) for q in found)
    return StudentQuality(loss, agreement, product ** (1 / len(found)))


def majority_share(batches: Sequence[DistillationBatch], output: Output) -> float:
    """The agreement, in percent, of the best student that gives the same answer to every image."""
    return output.majority(torch.cat([batch.logits for batch in batches]))


def warnings_about(selection: Selection, learning_rate: float, output: Output) -> list[str]:
    """What a user should know about a selection: training was in vain, or the student is of no use.

    Args:
        selection: Of a finished run.
        learning_rate: With which the student was trained.
        output: How the logits decide.
    """
    found, (name, last) = [], list(selection.candidates.items())[-1]
    before = selection.candidates.get(CALIBRATED)
    if name not in (FIRST, CALIBRATED, selection.selected) and before and last.is_worse_than(before):
        found.append(
            f"training made the student worse, on the images that judge students: its loss went from {before.loss:.3g} "
            f"to {last.loss:.3g} and its agreement from {before.agreement:.1f} to {last.agreement:.1f} %; the "
            f"{selection.selected} student is kept. Give a smaller rate, such as "
            f"--set student.learning_rate={learning_rate / 3:.2g}, or another number of student.steps"
        )
    if selection.is_at_chance(output):
        found.append(
            f"the student is of no use: it agrees with the teacher on {selection.final.agreement:.1f} % of augmented "
            f"synthetic images, and one that always answers the same on {selection.majority_share:.1f} %. "
            "Give more --bits, or better images (images.count, images.steps)"
        )
    return found
