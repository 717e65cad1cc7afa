from __future__ import annotations

import copy
import itertools
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE, traced

from acq.core.values import Preprocessing, Record
from acq.network.teacher import Teacher
from acq.quantization.plan import NumberFormat, plan
from acq.quantization.student import build
from acq.runs import checkpoint
from acq.synthesis.dataset import synthesise
from acq.synthesis.generators import CanvasGenerator
from acq.training.losses import logit_match
from acq.training.trainer import GeneratorPlan, ImagePlan, StudentPlan, Trainer, learning_rate_factor, train

GENERATOR = GeneratorPlan(
    weights={"classes": 1.0, "statistics": 1.0, "centre": 1.0, "paired": 0.1, "consistency": 0.1},
    steps=6,
    batch=8,
    learning_rate=0.01,
    noise_dim=4,
    spread=0.15,
)
IMAGES = ImagePlan(
    weights={"classes": 0.3, "statistics": 1.0, "centre": 1.0, "paired": 0.1, "consistency": 0.1},
    count=24,
    batch=10,
    steps=3,
    learning_rate=0.1,
    scene=0.5,
)
STUDENT = StudentPlan(
    weights={"logits": 1.0, "probabilities": 0.5, "features": 1.0},
    steps=7,
    batch=8,
    learning_rate=0.02,
    scale_learning_rate=0.01,
    calibration_images=12,
    equalization=True,
    rounding=True,
    renew_every=2,
    renew_count=10,
    augment=0.5,
)
KNOWN = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)


def made(
    generator: GeneratorPlan = GENERATOR,
    images: ImagePlan = IMAGES,
    student: StudentPlan = STUDENT,
    bits: str = "w4a4",
) -> Trainer:
    """A trainer of its own; two of them are equal bit for bit."""
    torch.manual_seed(7)
    graph = traced("residual")
    return Trainer(
        Teacher(graph),
        CanvasGenerator(KNOWN, 5, noise_dim=generator.noise_dim, width=8),
        build(graph, plan(graph, NumberFormat.parse(bits))),
        KNOWN,
        (generator, images, student),
        torch.Generator().manual_seed(3),
    )


def told(record: Record) -> tuple[Any, ...]:
    """A record without its seconds."""
    return record.phase, record.step, record.steps, record.values


def parted(state: Any, path: str = "") -> dict[str, Any]:
    """A nested state as one flat mapping, without its seconds."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, value in items for name, leaf in parted(value, f"{path}.{key}").items()}
    return {} if path == ".seconds" else {path: state}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = parted(first), parted(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def test_a_run_has_a_record_a_step() -> None:
    """Phases come in order, each step counts one up, seconds only grow, and figures come at each phase's end."""
    records = list(train(made()))
    expected = [("generator", i + 1, 6) for i in range(6)] + [("images", i + 1, 9) for i in range(9)]
    expected += [("calibration", 1, 1), *(("student", i + 1, 7) for i in range(7)), ("freezing", 1, 1)]
    assert [told(record)[:3] for record in records] == expected
    assert all(before.seconds < after.seconds for before, after in pairwise(records))
    assert records[5].values.keys() == GENERATOR.weights.keys()
    assert records[14].values.keys() == IMAGES.weights.keys()
    assert records[-2].values.keys() == STUDENT.weights.keys()


def test_two_runs_are_equal_bit_for_bit() -> None:
    """Equal settings and seeds give the same figures, weights, optimizers, pool and next random number."""
    first, second = made(), made()
    assert [told(record) for record in train(first)] == [told(record) for record in train(second)]
    assert_same(first.state(), second.state())


def test_another_seed_is_another_run() -> None:
    """The generator of random numbers decides what is drawn."""
    first, second = made(), made()
    second.rng.manual_seed(4)
    for trainer in (first, second):
        list(train(trainer))
    assert first.pool is not None
    assert second.pool is not None
    assert not torch.equal(first.pool.lesson.images, second.pool.lesson.images)


# in the generator and at its end; amid each batch of images and after it; calibrated; between and at renewals
@pytest.mark.parametrize("stop", [1, 3, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17, 19, 20, 23])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    """Saved after any step of any phase and restored into a fresh trainer, it ends the same bit for bit."""
    whole = made()
    records = [told(record) for record in train(whole)]
    first = made()
    for done, _ in enumerate(train(first), 1):
        if done == stop:
            checkpoint.save(tmp_path / "state.pt", first.state())
            break
    second = made()
    second.restore(checkpoint.load(tmp_path / "state.pt"))
    assert second.seconds == first.seconds
    assert [told(record) for record in train(second)] == records[stop:]
    assert_same(second.state(), whole.state())


@pytest.mark.parametrize("stop", [2, 8, 9, 11, 15, 18])
def test_a_trainer_goes_back_to_where_it_was(stop: int) -> None:
    """Restored in place, the same trainer repeats what it did."""
    trainer, kept, records = made(), None, []
    for done, record in enumerate(train(trainer), 1):
        if done == stop:
            kept = copy.deepcopy(trainer.state())
        records.append(told(record))
    assert kept is not None
    trainer.restore(kept)
    assert (trainer.pool is None) == (kept["pool"] is None) == (stop < 15)
    assert (trainer.draft is None) == (kept["draft"] is None) == (stop not in (8, 11))
    assert len(trainer.finished) == len(kept["finished"]) == (1 if stop in (9, 11) else 0)
    assert [told(record) for record in train(trainer)] == records[stop:]


def test_a_finished_run_has_nothing_left() -> None:
    """Training on yields no record and changes nothing."""
    trainer = made()
    list(train(trainer))
    before = copy.deepcopy(trainer.state())
    assert list(train(trainer)) == []
    assert_same(trainer.state(), before)


def test_the_teacher_is_not_trained() -> None:
    """Not a value of its graph changes over a whole run."""
    trainer = made()
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    list(train(trainer))
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())


def test_each_phase_trains_its_own_network() -> None:
    """The student is untouched until calibration, the generator, its statistics too, after its last step."""
    trainer = made()
    student = {name: value.clone() for name, value in trainer.student.state_dict().items() if "scale" not in name}
    for record in train(trainer):
        if record.phase in ("generator", "images"):
            now = trainer.student.state_dict()
            assert all(torch.equal(now[name], value) for name, value in student.items() if value.isfinite().all())
        if record.phase == "generator":
            generator = {name: value.clone() for name, value in trainer.generator.state_dict().items()}
    now = trainer.generator.state_dict()
    assert all(torch.equal(now[name], value) for name, value in generator.items())
    moved = trainer.student.state_dict()
    assert any(not torch.equal(moved[name], value) for name, value in student.items())


@pytest.mark.parametrize("name", ["classes", "statistics", "centre", "paired", "consistency"])
def test_the_generator_learns(name: str) -> None:
    """On a toy each loss falls when it alone has a weight: the median of later batches, some of which are far off."""
    generator = replace(GENERATOR, weights={name: 1.0}, steps=60, batch=16)
    phase = itertools.takewhile(lambda record: record.phase == "generator", train(made(generator)))
    first, *others = [record.values[name] for record in phase if record.values]
    assert statistics.median(others) < 0.95 * first


def test_mixed_precision_learns_as_well_and_repeats() -> None:
    """Products in bfloat16 are other ones; what is made of them is in 32 bits, and the same twice."""
    plans = replace(GENERATOR, mixed=True), replace(IMAGES, mixed=True)
    first, second, full = made(*plans), made(*plans), made()
    records = [told(record) for record in train(first)]
    assert records == [told(record) for record in train(second)]
    assert records != [told(record) for record in train(full)]
    assert first.pool is not None
    assert full.pool is not None
    assert first.pool.lesson.images.dtype == torch.float32
    apart = (first.pool.lesson.images - full.pool.lesson.images).abs().mean()
    assert 0 < apart < 0.1 * full.pool.lesson.images.std()


@pytest.mark.parametrize("name", ["classes", "statistics", "centre", "paired", "consistency"])
def test_images_are_finished(name: str) -> None:
    """On a toy each loss falls when it alone has a weight."""
    images = replace(IMAGES, weights={name: 1.0}, count=16, batch=16, steps=40)
    records = train(made(images=images, student=replace(STUDENT, steps=0)))
    figures = [record.values for record in records if record.phase == "images" and record.values]
    assert figures[-1][name] < 0.95 * figures[0][name]


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(24, 10, 3), (24, 24, 1), (16, 100, 2), (18, 8, 1), (24, 10, 0), (17, 8, 0)]
)
def test_the_pool_has_as_many_images_as_asked_for(count: int, batch: int, steps: int) -> None:
    """Whether or not batches divide the count; it is there with the phase's last step, and no draft is left."""
    plan = replace(IMAGES, count=count, batch=batch, steps=steps)
    trainer = made(images=plan, student=replace(STUDENT, steps=0))
    for record in train(trainer):
        last = record.phase in ("calibration", "freezing") or (record.phase == "images" and record.step == record.steps)
        assert (trainer.pool is not None) == last
        if last:
            assert trainer.pool is not None
            assert len(trainer.pool.lesson.images) == len(trainer.pool.lesson.logits) == count
            assert len(trainer.pool.lesson.images.flatten(1).unique(dim=0)) == count
            assert trainer.pool.oldest == 0
            assert trainer.draft is None
            assert trainer.finished == []


def test_images_are_finished_a_batch_at_a_time() -> None:
    """Of 24 images ten, ten and four, each batch untouched once it is finished; its order is the pool's."""
    trainer, drafts, finished = made(), [], list[torch.Tensor]()
    for record in train(trainer):
        if record.phase == "images":
            drafts.append(0 if trainer.draft is None else len(trainer.draft.logits))
            finished += [images.clone() for images in trainer.finished[len(finished) :]]
            if record.step == record.steps:
                break
    assert drafts == [10, 10, 0, 10, 10, 0, 4, 4, 0]
    assert trainer.pool is not None
    images = trainer.pool.lesson.images
    assert torch.equal(images[:20], torch.cat(finished))


def test_finished_images_are_pictures() -> None:
    """However large the rate, what the pool holds are pixels in [0, 1], normalised."""
    trainer = made(images=replace(IMAGES, learning_rate=5.0), student=replace(STUDENT, steps=0))
    list(train(trainer))
    assert trainer.pool is not None
    pixels = trainer.pool.lesson.images * 0.25 + 0.5
    assert pixels.shape[1:] == SIZE
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("scene", [0.0, 0.5])
def test_without_steps_images_are_as_generated(scene: float) -> None:
    """One record, without figures, and the pool is what the generator makes of the next conditions, and no more."""
    plan = replace(IMAGES, steps=0, scene=scene, batch=8)
    trainer = made(images=plan)
    for record in train(trainer):
        if record.phase == "generator" and record.step == record.steps:
            rng = torch.Generator()
            rng.set_state(trainer.rng.get_state())
        if record.phase == "images":
            break
    assert told(record) == ("images", 1, 1, {})
    expected = synthesise(trainer.generator, trainer.teacher, 24, noise_dim=4, spread=0.15, rng=rng)
    assert trainer.pool is not None
    for name, value in vars(expected).items():
        assert torch.equal(getattr(trainer.pool.lesson, name), value), name
    assert torch.equal(trainer.rng.get_state(), rng.get_state())


def test_steps_change_what_was_generated() -> None:
    """With steps and no scene images begin as the generator makes them, and are others at their end."""
    found = []
    for steps in (0, 1):
        plan = replace(IMAGES, steps=steps, batch=24, scene=0.0)
        trainer = made(images=plan, student=replace(STUDENT, steps=0))
        list(train(trainer))
        assert trainer.pool is not None
        found.append(trainer.pool.lesson.images * 0.25 + 0.5)
    moved = (found[1] - found[0]).abs()
    assert moved.mean() > 0.001
    assert moved.max() < 0.1  # a step of a tenth moves a pixel by a fortieth, where it begins by a fiftieth at most


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_that_takes_images_as_generated_is_resumed(stop: int, tmp_path: Path) -> None:
    """Around its one step of images too it ends the same bit for bit."""
    plans = {"generator": replace(GENERATOR, steps=2), "images": replace(IMAGES, steps=0)}
    whole, first, second = (made(**plans) for _ in range(3))  # type: ignore[arg-type]
    records = [told(record) for record in train(whole)]
    for _, _record in zip(range(stop), train(first), strict=False):
        checkpoint.save(tmp_path / "state.pt", first.state())
    second.restore(checkpoint.load(tmp_path / "state.pt"))
    assert [told(record) for record in train(second)] == records[stop:]
    assert_same(second.state(), whole.state())


@torch.no_grad()
def pool_error(trainer: Trainer) -> float:
    assert trainer.pool is not None
    return logit_match(trainer.student(trainer.pool.lesson.images), trainer.pool.lesson.logits).item()


def test_the_student_learns() -> None:
    """At 2 bits, distillation on a fixed pool leaves at most a third of the error that calibration leaves."""
    student = replace(
        STUDENT, weights={"logits": 1.0}, steps=200, batch=24, renew_count=0, rounding=False, learning_rate=0.02
    )
    errors = []
    for steps in (0, 200):
        trainer = made(student=replace(student, steps=steps), bits="w2a2")
        list(train(trainer))
        errors.append(pool_error(trainer))
    assert errors[1] < errors[0] / 3


def pools(student: StudentPlan) -> list[torch.Tensor]:
    """The images of the pool after they are finished, after calibration, each of the student's steps and freezing."""
    trainer = made(student=student)
    return [trainer.pool.lesson.images.clone() for _ in train(trainer) if trainer.pool is not None]


def test_the_pool_is_renewed_in_turns() -> None:
    """Every second step the ten oldest of 24 images are replaced, round and round."""
    found = pools(STUDENT)
    changed = [(now != before).flatten(1).any(1).nonzero().flatten().tolist() for before, now in pairwise(found)]
    renewals = [list(range(10)), list(range(10, 20)), [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]]
    assert changed == [[], [], [], renewals[0], [], renewals[1], [], renewals[2], []]


def test_a_pool_may_be_kept() -> None:
    """With nothing to renew, the first images are the last."""
    found = pools(replace(STUDENT, renew_count=0))
    assert len(found) == 10
    assert all(torch.equal(images, found[0]) for images in found)


@pytest.mark.parametrize("renewed", [0, 10])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_the_pool_holds_is_the_teacher_s(steps: int, renewed: int) -> None:
    """Finished, as generated, or renewed: each image's logits and features are what the teacher says of it."""
    trainer = made(images=replace(IMAGES, steps=steps), student=replace(STUDENT, renew_count=renewed))
    list(train(trainer))
    assert trainer.pool is not None
    lesson = trainer.pool.lesson
    reading = trainer.teacher.read(lesson.images)
    torch.testing.assert_close(lesson.logits, reading.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lesson.features, reading.features, rtol=1e-4, atol=1e-5)
    assert not lesson.images.requires_grad


def test_a_student_may_be_calibrated_only() -> None:
    """Without student steps the run ends with ranges for every quantizer."""
    trainer = made(student=replace(STUDENT, steps=0))
    records = list(train(trainer))
    assert [record.phase for record in records[-2:]] == ["calibration", "freezing"]
    assert all(value.isfinite().all() for value in trainer.student.state_dict().values())


@pytest.mark.parametrize(("views", "count", "seen"), [(0.5, 12, 12), (0.5, 40, 40), (0.5, 64, 48), (0.0, 64, 24)])
def test_calibration_sees_views_where_images_are_few(
    monkeypatch: pytest.MonkeyPatch, augment: float, count: int, seen: int
) -> None:
    """The pool's 24 images come first, then another view of each as far as room is left; none where none are wanted."""
    taken = list[torch.Tensor]()
    monkeypatch.setattr("acq.training.trainer.round_layers", lambda _, batches: taken.extend(batches))
    trainer = made(student=replace(STUDENT, augment=augment, calibration_images=count, renew_count=0))
    list(train(trainer))
    assert trainer.pool is not None
    images, pool = torch.cat(taken), trainer.pool.lesson.images
    assert len(images) == seen
    known = [any(torch.equal(image, other) for other in pool) for image in images]
    assert all(known[:24])
    assert not any(known[24:])


RUINOUS = replace(STUDENT, learning_rate=3.0, renew_count=0)
GENTLE = replace(RUINOUS, learning_rate=0.001, scale_learning_rate=0.001)


def test_a_student_that_training_ruins_goes_back() -> None:
    """To the calibrated one, bit for bit: the run ends with the student of a run that trains none."""
    ruined, untrained = made(student=RUINOUS), made(student=replace(RUINOUS, steps=0))
    for trainer in (ruined, untrained):
        list(train(trainer))
    assert_same(ruined.student.state_dict(), untrained.student.state_dict())
    assert ruined.outcome is not None
    assert ruined.outcome.calibrated is not None
    assert ruined.outcome.trained is not None
    assert ruined.outcome.kept == "calibrated"
    assert ruined.outcome.trained.loss > 2 * ruined.outcome.calibrated.loss
    assert untrained.outcome == replace(ruined.outcome, trained=None)


def test_a_student_that_training_does_not_harm_is_kept() -> None:
    """As if nobody had looked: not a value and not a random number differ."""
    looked_at, left = made(student=GENTLE), made(student=GENTLE)
    for record in train(looked_at):
        if (record.phase, record.step) == ("student", 7):
            rng = looked_at.rng.get_state()
    assert looked_at.outcome is not None
    assert looked_at.outcome.kept == "trained"
    assert torch.equal(looked_at.rng.get_state(), rng)
    for record in train(left):
        if (record.phase, record.step) == ("student", 7):
            left.calibrated = None
    assert_same(looked_at.student.state_dict(), left.student.state_dict())


@pytest.mark.parametrize("plan", [RUINOUS, GENTLE])
@pytest.mark.parametrize("stop", [16, 18, 23, 24])
def test_a_run_is_resumed_around_the_verdict(plan: StudentPlan, stop: int, tmp_path: Path) -> None:
    """Calibrated, amid training, before the verdict and after it: the same student and the same figures."""
    whole, first, second = (made(student=plan) for _ in range(3))
    list(train(whole))
    for done, _ in enumerate(train(first), 1):
        if done == stop:
            checkpoint.save(tmp_path / "state.pt", first.state())
            break
    second.restore(checkpoint.load(tmp_path / "state.pt"))
    list(train(second))
    assert second.outcome == whole.outcome
    assert_same(second.state(), whole.state())


def test_a_checkpoint_without_a_calibrated_student_is_gone_on_with(tmp_path: Path) -> None:
    """As versions before wrote it: there is nothing to go back to, and the trained student is kept."""
    first, second = made(student=RUINOUS), made(student=RUINOUS)
    for record in train(first):
        if (record.phase, record.step) == ("student", 3):
            state = {key: value for key, value in first.state().items() if key not in ("calibrated", "outcome")}
            checkpoint.save(tmp_path / "state.pt", state)
            break
    second.restore(checkpoint.load(tmp_path / "state.pt"))
    list(train(second))
    assert second.outcome is not None
    assert second.outcome.calibrated is None
    assert second.outcome.kept == "trained"


def test_losses_without_weight_are_not_reported() -> None:
    """A weight of zero switches a loss off in every phase."""
    generator = replace(GENERATOR, weights={"classes": 1.0, "consistency": 0.0})
    images = replace(IMAGES, weights={"statistics": 1.0, "centre": 0.0, "consistency": 0.0})
    student = replace(STUDENT, weights={"logits": 0.0, "features": 1.0})
    figures = {record.phase: record.values for record in train(made(generator, images, student)) if record.values}
    assert figures["generator"].keys() == {"classes"}
    assert figures["images"].keys() == {"statistics"}
    assert figures["student"].keys() == {"features"}


@pytest.mark.parametrize("steps", [1, 2, 7, 400])
@pytest.mark.parametrize("rising", [0.0, 0.02, 0.5])
def test_the_learning_rate_rises_and_falls(steps: int, rising: float) -> None:
    """It is never above one, reaches one, rises to it and then only falls, and no step goes unused."""
    factors = [learning_rate_factor(step, steps, rising) for step in range(steps)]
    peak = factors.index(max(factors))
    assert max(factors) == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors) > 0


def test_rates_are_given_back_after_each_step() -> None:
    """The optimizers keep each group's own rate, so that a saved one means what it did.

    The student's are steps of each layer's grid, and steps of the range's end for scales.
    """
    trainer, rates, grids = made(), list[float](), list[float]()
    for record in train(trainer):
        if record.phase == "calibration":
            grids = [0.02 * layer.weight_quantizer.scale.mean().item() for _, layer in trainer.student.layers()]
        if trainer.draft is not None:
            rates += [group["lr"] for group in trainer.draft.optimizer.param_groups]
    assert rates == [0.1] * 6
    found = [group["lr"] for group in trainer.student_optimizer.param_groups]
    assert found[: len(grids)] == grids
    assert sorted(found[len(grids) :]) == sorted(0.01 / high for high in (7, 255, 15))
    assert [group["lr"] for group in trainer.generator_optimizer.param_groups] == [0.01]


def test_consistency_alone_is_taken_every_step() -> None:
    """Where no other loss has a weight there is nothing to learn from between two of them."""
    generator = replace(GENERATOR, weights={"classes": 0.0, "consistency": 1.0}, consistency_every=5)
    records = [record for record in train(made(generator)) if record.phase == "generator"]
    assert len(records) == GENERATOR.steps
    assert records[-1].values.keys() == {"consistency"}
