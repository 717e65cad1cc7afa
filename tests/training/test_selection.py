from __future__ import annotations

import math

import pytest
import torch
from helpers import CLASSES, images, student_of, traced

from acq.network.teacher import Teacher
from acq.synthesis.dataset import DistillationBatch, teach
from acq.synthesis.losses import weighted_sum
from acq.training.losses import student_losses
from acq.training.selection import Selection, StudentQuality, majority_share, over_kinds, quality, warnings_about

WEIGHTS = {"logits": 1.0, "probabilities": 0.5, "features": 4.0}
GOOD, BAD = StudentQuality(0.1, 100.0, 0.01), StudentQuality(1.0, 60.0, 0.1)


def selection(selected: str = "trained", final: StudentQuality = GOOD, most: float = 10.0) -> Selection:
    return Selection({"calibrated": GOOD, "trained": GOOD}, selected, final, most, WEIGHTS)


def test_the_quality_is_what_training_descends() -> None:
    """The loss is the weighted sum of the student's losses, mean over images. Agreement is over all of them."""
    teacher, student = Teacher(traced("residual")), student_of("residual")
    tap, batches = teacher.features, [teach(images(count, seed=count), teacher) for count in (8, 4)]
    losses = []
    for batch in batches:
        with torch.no_grad():
            logits, values = student.read(batch.images, (tap,))
        found = student_losses((logits, values[tap]), (batch.logits, batch.features), WEIGHTS, CLASSES)
        losses.append(weighted_sum(found, WEIGHTS).item())
        assert quality(student, tap, [batch], WEIGHTS, CLASSES).loss == pytest.approx(losses[-1])
    both = quality(student.train(), tap, batches, WEIGHTS, CLASSES)
    assert both.loss == pytest.approx((8 * losses[0] + 4 * losses[1]) / 12)
    same = sum(int((student(batch.images).argmax(1) == batch.logits.argmax(1)).sum()) for batch in batches)
    assert both.agreement == pytest.approx(100 * same / 12)
    each = [quality(student, tap, [batch], WEIGHTS, CLASSES).divergence for batch in batches]
    assert both.divergence == pytest.approx((8 * each[0] + 4 * each[1]) / 12)
    assert each[0] == pytest.approx(CLASSES.divergence(student(batches[0].images), batches[0].logits).item())
    assert student.training


def test_kinds_of_images_count_alike() -> None:
    """Loss and agreement are means. A divergence that doubles on one kind and halves on the other stays as it is."""
    one, other = StudentQuality(0.2, 90.0, 0.01), StudentQuality(0.4, 70.0, 0.16)
    both = over_kinds([one, other])
    assert (both.loss, both.agreement) == pytest.approx((0.3, 80.0))
    assert both.divergence == pytest.approx(0.04)
    moved = over_kinds([StudentQuality(0.2, 90.0, 0.02), StudentQuality(0.4, 70.0, 0.08)])
    assert moved.divergence == pytest.approx(both.divergence)
    assert over_kinds([one]) == one


def test_a_divergence_is_no_number_where_one_kind_has_none() -> None:
    assert math.isnan(over_kinds([GOOD, StudentQuality(1.0, 1.0, math.nan)]).divergence)


def test_rounding_errors_on_one_kind_do_not_decide() -> None:
    """Of two students without a divergence on one kind, up to rounding, the other kind decides."""
    better = over_kinds([StudentQuality(0.0, 100.0, 1e-7), GOOD])
    assert better.is_better_than(over_kinds([StudentQuality(0.0, 100.0, -1e-9), BAD]))
    assert over_kinds([StudentQuality(0.0, 100.0, -1e-9), BAD]).divergence > 0


def test_the_majority_is_counted_over_all_batches() -> None:
    """The share of the teacher's most frequent class is in percent of all images."""
    batches = [
        DistillationBatch(x := torch.zeros(len(found), 1), torch.eye(5)[found], x) for found in ([0, 1, 1], [1, 2])
    ]
    assert majority_share(batches, CLASSES) == 60


@pytest.mark.parametrize(
    ("loss", "agreement", "is_worse"),
    [(0.5, 90.0, False), (1.05, 75.0, False), (1.15, 90.0, True), (math.nan, 90.0, True), (0.5, 70.0, True)],
)
def test_small_differences_are_not_worse(loss: float, agreement: float, is_worse: bool) -> None:
    """A tenth of the loss and a fifth of the agreement are tolerated, and NaN is not."""
    assert StudentQuality(loss, agreement, 0.1).is_worse_than(StudentQuality(1.0, 90.0, 0.1)) == is_worse


@pytest.mark.parametrize(
    ("divergence", "agreement", "is_better"),
    [(0.99, 46.0, True), (1.0, 99.0, False), (1.01, 99.0, False), (math.nan, 99.0, False), (0.5, 44.0, False)],
)
def test_a_lower_divergence_is_better_unless_agreement_is_lost(
    divergence: float, agreement: float, is_better: bool
) -> None:
    """Equal ones and NaN are not better, and half of the agreement is tolerated. The loss does not matter."""
    for loss in (0.1, 9.0):
        better = StudentQuality(loss, agreement, divergence).is_better_than(StudentQuality(1.0, 90.0, 1.0))
        assert better == is_better


def test_any_divergence_is_better_than_none() -> None:
    """NaN comes from a student with broken weights."""
    broken = StudentQuality(math.nan, 10.0, math.nan)
    assert StudentQuality(5.0, 10.0, 5.0).is_better_than(broken)
    assert not broken.is_better_than(broken)


@pytest.mark.parametrize(
    ("agreement", "most", "is_at_chance"),
    [(0.0, 10.0, True), (10.0, 10.0, True), (20.0, 10.0, False), (60.0, 80.0, False)],
)
def test_chance_is_what_a_single_class_gives(agreement: float, most: float, is_at_chance: bool) -> None:
    """The final student counts, and nothing is said where the teacher gives one class to most images."""
    assert selection(final=StudentQuality(1.0, agreement, 1.0), most=most).is_at_chance(CLASSES) == is_at_chance


def test_a_selection_is_restored() -> None:
    """Its state is numbers and names, from which an equal selection is made."""
    made = Selection({"calibrated": GOOD, "trained": BAD}, "calibrated", BAD, 12.5, WEIGHTS)
    assert Selection.restored(made.state()) == made
    assert list(Selection.restored(made.state()).candidates) == ["calibrated", "trained"]


def test_training_in_vain_is_a_warning() -> None:
    """Both figures are given, and a smaller rate; there is no warning where the last candidate was kept."""
    made = Selection({"calibrated": GOOD, "trained": BAD}, "calibrated", GOOD, 10.0, WEIGHTS)
    (text,) = warnings_about(made, 0.03, CLASSES)
    assert "its loss went from 0.1 to 1 and its agreement from 100.0 to 60.0 %" in text
    assert "the calibrated student is kept" in text
    assert "student.learning_rate=0.01," in text
    assert warnings_about(selection(), 0.03, CLASSES) == []
    assert warnings_about(Selection({"calibrated": GOOD}, "calibrated", GOOD, 10.0, WEIGHTS), 0.03, CLASSES) == []


def test_training_that_helps_is_not_in_vain() -> None:
    """Where the first student is kept, a warning needs a student that training made worse than it found it."""
    worst, worse = StudentQuality(3.0, 50.0, 0.3), StudentQuality(2.0, 60.0, 0.2)
    for candidates, warned in (
        ({"first": GOOD, "calibrated": worst, "trained": worse}, False),
        ({"first": GOOD, "calibrated": worse, "trained": worst}, True),
        ({"first": GOOD, "calibrated": worse}, False),
    ):
        assert bool(warnings_about(Selection(candidates, "first", GOOD, 10.0, WEIGHTS), 0.03, CLASSES)) == warned


def test_a_student_of_no_use_is_a_warning() -> None:
    """Its agreement is given beside that of a student that always answers the same."""
    (text,) = warnings_about(selection(final=StudentQuality(1.0, 3.0, 1.0), most=20.0), 0.03, CLASSES)
    assert "of no use: it agrees with the teacher on 3.0 %" in text
    assert "always answers the same on 20.0 %" in text
