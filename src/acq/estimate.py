"""How long a run would take on this machine: its first steps of each phase are taken and timed."""

from __future__ import annotations

from dataclasses import replace

from acq.trainer import Trainer, train

_STEPS, _IMAGES = 3, 64


def estimate(trainer: Trainer) -> dict[str, float]:
    """Seconds of each phase of ``trainer``'s run, which is spent: its plans are cut short and followed to the end.

    The fastest of three steps stands for all of a phase (the first ones also warm up), calibration for images in
    proportion. The review at the end and the report are not in it: a tenth more, where they were measured.
    """
    generator, images, student = trainer.generator_plan, trainer.image_plan, trainer.student_plan
    calibrated = min(student.calibration_images, images.count)
    tried = min(_IMAGES, calibrated, images.batch)
    wanted = {
        "generator": generator.steps,
        "images": images.total_steps if images.steps else images.count / images.batch,
        "calibration": calibrated / tried,
        "student": student.steps,
        "freezing": 1,
    }
    trainer.generator_plan = replace(generator, steps=min(_STEPS, generator.steps))
    trainer.image_plan = replace(images, count=min(images.batch, images.count), steps=min(_STEPS, images.steps))
    trainer.student_plan = replace(student, steps=min(_STEPS, student.steps), calibration_images=tried)
    fastest: dict[str, float] = {}
    before = trainer.seconds
    for record in train(trainer):
        took, before = record.seconds - before, record.seconds
        fastest[record.phase] = min(took, fastest.get(record.phase, took))
    return {phase: fastest.get(phase, 0.0) * count for phase, count in wanted.items()}
