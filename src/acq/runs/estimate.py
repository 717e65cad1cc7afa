"""How long a run would take on this machine: its first steps of each phase are taken and timed."""

from __future__ import annotations

from dataclasses import replace

from acq.training.trainer import Trainer, train

_STEPS, _IMAGES = 3, 64


def estimate(trainer: Trainer) -> dict[str, float]:
    """Seconds of each phase of ``trainer``'s run, which is spent: its plans are cut short and followed to the end.

    The fastest of three steps stands for all of a phase (the first ones also warm up); of the generator's as many are
    taken as lie between two of its consistency loss, and the slowest of these counts once. Calibration is taken to grow
    with the images, which is too much: a part of it does not. Renewed images, the review at the end and the report are
    not in it: the last two were a tenth more where they were measured.
    """
    generator, images, student = trainer.generator_plan, trainer.image_plan, trainer.student_plan
    calibrated = student.calibrated_on(images.count)
    tried = min(_IMAGES, calibrated, images.batch)
    wanted = {
        "generator": generator.steps,
        "images": images.total_steps if images.steps else images.count / images.batch,
        "calibration": calibrated / tried,
        "student": student.steps,
        "freezing": 1,
    }
    period = generator.consistency_every if generator.weights.get("consistency") else 1
    trainer.generator_plan = replace(generator, steps=min(max(_STEPS, period), generator.steps))
    trainer.image_plan = replace(images, count=min(images.batch, images.count), steps=min(_STEPS, images.steps))
    trainer.student_plan = replace(student, steps=min(_STEPS, student.steps), calibration_images=tried)
    took: dict[str, list[float]] = {phase: [] for phase in wanted}
    before = trainer.seconds
    for record in train(trainer):
        took[record.phase].append(record.seconds - before)
        before = record.seconds
    paces = {phase: min(times, default=0.0) for phase, times in took.items()}
    if 1 < period <= len(took["generator"]):  # the last step is the one with the consistency loss
        paces["generator"] += max(0.0, took["generator"][period - 1] - paces["generator"]) / period
    return {phase: paces[phase] * count for phase, count in wanted.items()}
