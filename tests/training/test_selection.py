from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from helpers import images, student_of, traced

from acq.network.teacher import Teacher
from acq.synthesis.dataset import DistillationBatch, read
from acq.training import losses as distillation
from acq.training.selection import Selection, StudentQuality, fidelity, majority_share

WEIGHTS = {"logits": 1.0, "probabilities": 0.5, "features": 4.0}


def lesson_of(teacher: Teacher, count: int, seed: int) -> DistillationBatch:
    return read(images(count, seed=seed), teacher)


def test_it_is_what_training_descends() -> None:
    """The weighted losses of a batch, and the mean over images of several batches."""
    teacher, student = Teacher(traced("residual")), student_of("residual")
    tap, lessons = teacher.structure.features, [lesson_of(teacher, count, seed) for count, seed in ((8, 2), (4, 3))]
    losses = []
    for lesson in lessons:
        with torch.no_grad():
            logits, values = student.read(lesson.images, (tap,))
        parts = distillation.parts((logits, values[tap]), (lesson.logits, lesson.features), WEIGHTS)
        losses.append(distillation.total(parts, WEIGHTS).item())
        assert fidelity(student, tap, [lesson], WEIGHTS).loss == pytest.approx(losses[-1])
    both = fidelity(student, tap, lessons, WEIGHTS)
    assert both.loss == pytest.approx((8 * losses[0] + 4 * losses[1]) / 12)
    same = sum(int((student(part.images).argmax(1) == part.logits.argmax(1)).sum()) for part in lessons)
    assert both.agreement == pytest.approx(100 * same / 12)


def test_the_commonest_class_is_counted_over_all() -> None:
    """In percent of the images."""
    lessons = [
        DistillationBatch(x := torch.zeros(len(found), 1), torch.eye(5)[found], x) for found in ([0, 1, 1], [1, 2])
    ]
    assert majority_share(lessons) == 60


@pytest.mark.parametrize(
    ("loss", "agreement", "worse"),
    [(0.5, 90.0, False), (1.05, 75.0, False), (1.15, 90.0, True), (math.nan, 90.0, True), (0.5, 70.0, True)],
)
def test_a_little_is_not_worse(loss: float, agreement: float, worse: bool) -> None:
    """A tenth of the loss and a fifth of the agreement; a loss that is no number is."""
    assert StudentQuality(loss, agreement).worse(StudentQuality(1.0, 90.0)) == worse


@pytest.mark.parametrize(
    ("agreement", "most", "chance"), [(0.0, 10.0, True), (10.0, 10.0, True), (20.0, 10.0, False), (60.0, 80.0, False)]
)
def test_chance_is_what_a_single_class_gives(agreement: float, most: float, chance: bool) -> None:
    """Whichever student was kept; where the teacher gives nearly all images one class, nothing is said."""
    bad, good = StudentQuality(1.0, agreement), StudentQuality(0.1, 100.0)
    assert Selection(good, bad, "trained", most).at_chance == chance
    assert Selection(bad, good, "calibrated", most).at_chance == chance
    assert not Selection(bad, good, "trained", most).at_chance


@pytest.mark.parametrize("trained", [None, StudentQuality(0.2, 95.0)])
def test_an_outcome_comes_back_from_its_values(trained: StudentQuality | None) -> None:
    """As a checkpoint keeps it."""
    outcome = Selection(StudentQuality(0.3, 90.0), trained, "calibrated", 12.5)
    assert Selection.restored(asdict(outcome)) == outcome
