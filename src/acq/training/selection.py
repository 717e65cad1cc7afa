"""How near a student is to its teacher, and whether training it was worth while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from acq.core.evaluate import evaluating
from acq.quantization.student import Student
from acq.synthesis.dataset import DistillationBatch
from acq.training import losses as distillation

# Nearer ones are told apart by chance, and at 8 bits training changes less. Agreement is asked too: a dead network has
# a loss of no more than its weights, and one that is right half the time may have a larger one.
_WORSE, _FALLEN = 1.1, 0.8
_MOST = 50  # percent of the images in one class: beyond, agreement says nothing


@dataclass(frozen=True)
class StudentQuality:
    """Of a student on some images the weighted losses of distillation, and the percentage to which it gives the
    teacher's class."""

    loss: float
    agreement: float

    def worse(self, other: StudentQuality) -> bool:
        """Whether its loss is more than 1.1 times the other's, or no number, or its agreement below 0.8 of the other's
        (the factors are this project's)."""
        return not self.loss <= _WORSE * other.loss or self.agreement < _FALLEN * other.agreement


@dataclass(frozen=True)
class Selection:
    """What came of a student: as calibrated, as trained (None for what was not looked at), and which of both was kept.

    ``majority_share`` is the percentage of the images that the teacher gives the class that it gives most often.
    """

    calibrated: StudentQuality | None
    trained: StudentQuality | None
    kept: Literal["calibrated", "trained"]
    majority_share: float

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        """From ``dataclasses.asdict`` of one."""
        both = {name: state[name] and StudentQuality(**state[name]) for name in ("calibrated", "trained")}
        return cls(**{**state, **both})

    @property
    def student(self) -> StudentQuality:
        """Of the student that was kept."""
        found = self.calibrated if self.kept == "calibrated" else self.trained
        assert found is not None
        return found

    @property
    def at_chance(self) -> bool:
        """Whether the student that was kept agrees no more often than one that gives the same class always, where the
        teacher gives none to half of the images (this project's definition)."""
        return self.student.agreement <= self.majority_share < _MOST


def fidelity(
    student: Student, tap: str, lessons: Sequence[DistillationBatch], weights: Mapping[str, float]
) -> StudentQuality:
    """``student`` on ``lessons``, whose features are those of the node ``tap``; losses are the mean over images of each
    lesson's ``distillation.total``."""
    loss, same = 0.0, 0
    with evaluating(student):
        for lesson in lessons:
            logits, values = student.read(lesson.images, (tap,))
            parts = distillation.parts((logits, values[tap]), (lesson.logits, lesson.features), weights)
            loss += len(lesson.images) * distillation.total(parts, weights).item()
            same += int((logits.argmax(1) == lesson.logits.argmax(1)).sum())
    count = sum(len(lesson.images) for lesson in lessons)
    return StudentQuality(loss / count, 100 * same / count)


def majority_share(lessons: Sequence[DistillationBatch]) -> float:
    """The percentage of images that the teacher gives the class that it gives most often."""
    found = torch.cat([lesson.logits.argmax(1) for lesson in lessons])
    return 100 * int(torch.bincount(found).max()) / len(found)
