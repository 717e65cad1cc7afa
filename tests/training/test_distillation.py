from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_runs import assert_same, training_
from torch import Tensor

from acq.training.distillation import Distillation, StudentSettings
from acq.training.judging import Judge
from acq.training.losses import logit_match
from acq.training.phase import StepResult
from acq.training.selection import CALIBRATED, FIRST, TRAINED, StudentQuality

FAST = {"rounding": False, "equalization": False}
NONE = {"logits": 0.0, "probabilities": 0.0, "features": 0.0}


def phase_(bits: str = "w4a4", **settings: Any) -> Distillation:
    """The training of a calibrated student on images that are as generated."""
    training = training_(bits=bits, calibration=FAST, student=settings)
    training.context.dataset = training.context.generated(24)
    training.phases["calibration"].step(0, 1.0)
    phase = training.phases["student"]
    assert isinstance(phase, Distillation)
    return phase


def results(phase: Distillation) -> list[StepResult]:
    return [phase.step(number, 1.0) for number in range(phase.steps)]


@torch.no_grad()
def error(phase: Distillation) -> float:
    dataset = phase.context.dataset
    output = phase.context.teacher.output
    return logit_match(phase.context.student.logits(dataset.images), dataset.batch.logits, output).item()


def test_the_student_learns() -> None:
    """At 2 bits, distillation on a fixed dataset leaves at most two thirds of the error that calibration leaves."""
    losses = {**NONE, "logits": 1.0}
    phase = phase_("w2a2", losses=losses, steps=120, batch=24, renew_count=0, learning_rate=0.02)
    before = error(phase)
    results(phase)
    assert error(phase) < 2 / 3 * before  # 0.24 to 0.58, depending on the seed


def test_losses_without_weight_are_not_computed() -> None:
    """Only losses with a weight are named in the result."""
    (result,) = results(phase_(losses={**NONE, "features": 1.0}, steps=1))
    assert result.losses.keys() == {"features"}


def test_the_trained_student_is_a_candidate() -> None:
    """The last step keeps the student beside the calibrated one, and no step before does."""
    phase = phase_(steps=3)
    for number in range(3):
        assert list(phase.context.candidates) == [CALIBRATED]
        phase.step(number, 1.0)
    assert list(phase.context.candidates) == [CALIBRATED, TRAINED]
    assert_same(phase.context.candidates[TRAINED], phase.context.student.state_dict())
    calibrated = phase.context.candidates[CALIBRATED]
    assert any(not torch.equal(value, calibrated[name]) for name, value in phase.context.candidates[TRAINED].items())


def datasets(phase: Distillation) -> list[Tensor]:
    """The images of the dataset before the first step and after each."""
    found = [phase.context.dataset.images]
    for number in range(phase.steps):
        phase.step(number, 1.0)
        found.append(phase.context.dataset.images)
    return found


def test_the_dataset_is_renewed_in_turns() -> None:
    """Every second step the ten oldest of 24 images are replaced, with the teacher's outputs for the new ones."""
    phase = phase_(steps=7, renew_every=2, renew_count=10)
    found = datasets(phase)
    changed = [(now != before).flatten(1).any(1).nonzero().flatten().tolist() for before, now in pairwise(found)]
    renewals = [list(range(10)), list(range(10, 20)), [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]]
    assert changed == [[], [], renewals[0], [], renewals[1], [], renewals[2]]
    batch = phase.context.dataset.batch
    output = phase.context.teacher.read(batch.images)
    torch.testing.assert_close(batch.logits, output.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.features, output.features, rtol=1e-4, atol=1e-5)


def test_the_dataset_may_be_kept() -> None:
    """Without renewal the dataset stays the same object."""
    phase = phase_(steps=3, renew_every=1, renew_count=0)
    dataset = phase.context.dataset
    results(phase)
    assert phase.context.dataset is dataset


def test_rates_are_in_quantization_steps() -> None:
    """Weights move in mean steps of their layer, scales in steps of the range's end; each group keeps its rate."""
    phase = phase_(steps=2, learning_rate=0.02, scale_learning_rate=0.01)
    steps = [layer.weight_quantizer.scale.mean().item() for _, layer in phase.context.student.layers()]
    results(phase)
    found = [group["lr"] for group in phase.optimizer.param_groups]
    assert found[: len(steps)] == [0.02 * step for step in steps]
    assert sorted(found[len(steps) :]) == sorted(0.01 / qmax for qmax in (7, 15, 63, 255))


def test_a_range_that_explodes_is_a_fault() -> None:
    """Scales that are learned far too fast are reported with the name of their quantizer."""
    *_, last = results(phase_(steps=5, scale_learning_rate=50.0))
    assert last.fault is not None
    assert last.fault.startswith("the range of ")
    assert results(phase_(steps=5))[-1].fault is None


def test_a_student_whose_range_explodes_in_its_round_is_no_candidate() -> None:
    """Ranges are looked at before a round's student is judged, whatever its number of steps."""
    phase = phase_(steps=6, round_steps=3, scale_learning_rate=50.0)
    before = dict(phase.context.candidates)
    *_, last = (phase.step(number, 1.0) for number in range(3))
    assert last.fault is not None
    assert phase.context.candidates == before


def test_a_restored_student_is_compared_with_its_own_ranges() -> None:
    """Ranges from which training went back are no reference any more."""
    phase = phase_(steps=5)
    phase.step(0, 1.0)
    state, context = phase.state(), phase.context.state()
    with torch.no_grad():
        for _, quantizer in phase.context.student.activations():
            quantizer.log_scale.add_(5)
    phase.guard.remember()
    phase.restore(state)
    phase.context.restore(context)
    assert [phase.step(number, 0.3).fault for number in range(1, 5)] == [None] * 4


def test_a_share_of_the_batch_is_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation the student sees images of the dataset, and with a half of it as many others."""
    for share, known in ((0.0, 8), (0.5, 4)):
        phase, seen = phase_(steps=1, batch=8, augmentation=share), list[Tensor]()
        real = phase.context.student_output
        monkeypatch.setattr(phase.context, "student_output", lambda x, seen=seen, real=real: seen.append(x) or real(x))
        phase.step(0, 1.0)
        images = phase.context.dataset.images
        assert sum(any(torch.equal(image, other) for other in images) for image in seen[0]) == known


def test_a_state_is_a_snapshot_from_which_another_phase_continues() -> None:
    """The optimizer that a state holds is that of its step, and leads another run to the same student."""
    phase, other = phase_(), phase_()
    for number in range(2):
        phase.step(number, 1.0)
    state, context = phase.state(), phase.context.state()
    before = copy.deepcopy(state)
    for number in range(2, 5):
        phase.step(number, 1.0)
    assert_same(state, before)
    other.restore(state)
    other.context.restore(context)
    for number in range(2, 5):
        other.step(number, 1.0)
    assert_same(other.context.state(), phase.context.state())
    assert_same(other.state(), phase.state())
    assert_same(state, before)


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [("residual", {}, 7), ("relu6", {}, 0), ("relu6", {"steps": 3}, 3), ("residual", {"steps": 0}, 0)],
)
def test_depthwise_networks_are_not_trained_unless_told(name: str, settings: dict[str, Any], steps: int) -> None:
    """Automatic steps are ``auto_steps``, or 0 if a convolution is depthwise; a number overrides that."""
    training = training_(name=name, student={"steps": "auto", "auto_steps": 7, **settings})
    assert training.phases["student"].steps == steps


def test_a_student_may_be_calibrated_only() -> None:
    """Without steps the run goes on with the calibrated student."""
    training = training_(generator={"steps": 1}, images={"steps": 0}, student={"steps": 0})
    assert [record.phase for record in training.run()] == ["first", "generator", "images", "calibration", "conversion"]
    assert training.context.selection.candidates.keys() == {FIRST, CALIBRATED}
    assert all(value.isfinite().all() for value in training.context.student.state_dict().values())


@pytest.mark.parametrize(("size", "batch"), [(32, 64), (224, 20)])
def test_an_automatic_batch_depends_on_the_image_size(size: int, batch: int) -> None:
    """Small images come 64 at a time, and large ones as many as memory allows."""
    assert StudentSettings().batch_for((3, size, size)) == batch
    assert StudentSettings(batch=9).batch_for((3, size, size)) == 9


class Scripted:
    """Divergences in the order in which students are judged, in place of measured ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *divergences: float) -> None:
        self.left = list(divergences)
        monkeypatch.setattr(Judge, "quality", lambda *_: StudentQuality(1.0, 90.0, self.left.pop(0)))


def rounds(phase: Distillation) -> list[tuple[StepResult, dict[str, Tensor]]]:
    """The result and the student after each step, up to the one that has had enough."""
    found = []
    for number in range(phase.steps):
        result = phase.step(number, 1.0)
        found.append((result, copy.deepcopy(phase.context.student.state_dict())))
        if result.enough is not None:
            break
    return found


def test_training_goes_on_while_rounds_bring_the_student_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student of the best round is the candidate. A last round that was in vain stops nothing."""
    script = Scripted(monkeypatch, 0.5, 1.0, 0.4, 0.6)  # the second is the calibrated student's
    phase = phase_(steps=6, round_steps=2)
    found = rounds(phase)
    assert len(found) == 6
    assert all(result.enough is None for result, _ in found)
    assert_same(phase.context.candidates[TRAINED], found[3][1])
    assert_same(phase.context.student.state_dict(), found[5][1])
    assert script.left == []


@pytest.mark.parametrize(("divergences", "steps", "kept"), [((1.0, 0.5), 2, 1), ((0.4, 0.5, 0.4), 4, 1)])
def test_a_round_in_vain_ends_training(
    divergences: tuple[float, ...], steps: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An equal student is no closer. The trained candidate is there all the same, to be compared."""
    Scripted(monkeypatch, *divergences)
    phase = phase_(steps=6, round_steps=2)
    found = rounds(phase)
    assert len(found) == steps
    assert found[-1][0].enough == "2 steps brought the student no closer to the teacher"
    assert list(phase.context.candidates) == [CALIBRATED, TRAINED]
    assert_same(phase.context.candidates[TRAINED], found[kept][1])


@pytest.mark.parametrize(("steps", "round_steps", "length"), [(5, 200, 5), (6, 0, 6), (290, 200, 290), (600, 200, 200)])
def test_rounds_have_equal_lengths(steps: int, round_steps: int, length: int) -> None:
    """A rest is spread over the rounds, and short trainings are one round."""
    assert phase_(steps=steps, round_steps=round_steps).round == length


def test_one_round_is_judged_by_the_last_phase_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training costs nothing more then."""
    Scripted(monkeypatch)
    results(phase_(steps=3, round_steps=0))


def test_each_round_has_its_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate rises and falls in every round, and the last round may be shorter."""
    Scripted(monkeypatch, 0.5, 1.0, 0.4)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "acq.training.distillation.learning_rate_factor", lambda step, steps, _: seen.append((step, steps)) or 1.0
    )
    rounds(phase_(steps=5, round_steps=2))
    assert seen == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]


def test_a_restored_training_remembers_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next round is compared with the same student."""
    Scripted(monkeypatch, 0.5, 1.0, 0.7)
    phase, again = phase_(steps=6, round_steps=2), phase_(steps=6, round_steps=2)
    for number in range(2):
        phase.step(number, 1.0)
    again.restore(phase.state())
    again.context.restore(phase.context.state())
    assert again.step(2, 1.0).enough is None
    assert again.step(3, 1.0).enough is not None
