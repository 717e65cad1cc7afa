"""The only loop: the generator learns from the teacher, then the student learns from both. It yields, others watch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acq import distillation
from acq.calibration import calibrate
from acq.condition import draw
from acq.flow import Record, Step
from acq.losses import total
from acq.pool import Lesson, Pool, mixed, synthesise
from acq.student import Student
from acq.teacher import Teacher

Phase = Literal["generator", "calibration", "student"]
_REPORT_EVERY = 10


@dataclass(frozen=True)
class GeneratorPlan:
    """How the generator is trained: weights of ``acq.losses`` by name, and an Adam run with a cosine decay."""

    weights: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    noise_dim: int
    spread: float


@dataclass(frozen=True)
class StudentPlan:
    """How the student is trained: weights of ``acq.distillation`` by name, its pool, and an Adam run.

    ``renew_count`` images replace the oldest of the pool's ``pool`` every ``renew_every`` steps; ``mix`` is the share
    of a batch that is blended with other images and read by the teacher anew.
    """

    weights: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    scale_learning_rate: float
    calibration_images: int
    pool: int
    renew_every: int
    renew_count: int
    mix: float = 0.0


class Trainer:
    """Everything that a run trains and the place it is at; ``train`` moves it, ``state`` holds it whole."""

    def __init__(
        self,
        teacher: Teacher,
        generator: nn.Module,
        student: Student,
        generator_plan: GeneratorPlan,
        student_plan: StudentPlan,
        rng: torch.Generator,
    ) -> None:
        self.teacher, self.generator, self.student = teacher, generator, student
        self.generator_plan, self.student_plan = generator_plan, student_plan
        self.rng = rng
        self.phase: Phase = "generator"
        self.step = 0
        self.seconds = 0.0
        self.pool: Pool | None = None
        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(), generator_plan.learning_rate, betas=(0.5, 0.999)
        )
        self.student_optimizer = torch.optim.Adam(_groups(student, student_plan))

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly: tensors, numbers and names alone."""
        pool = self.pool
        return {
            "phase": self.phase,
            "step": self.step,
            "seconds": self.seconds,
            "rng": self.rng.get_state(),
            "generator": self.generator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "student": self.student.state_dict(),
            "student_optimizer": self.student_optimizer.state_dict(),
            "pool": None if pool is None else {**vars(pool.lesson), "oldest": pool.oldest},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where ``state`` was taken."""
        self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
        self.rng.set_state(state["rng"].cpu())
        self.generator.load_state_dict(state["generator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.student.load_state_dict(state["student"])
        self.student_optimizer.load_state_dict(state["student_optimizer"])
        pool = state["pool"]
        self.pool = None
        if pool is not None:
            kept = {name: pool[name].to(self.rng.device) for name in ("images", "logits", "features")}
            self.pool = Pool(Lesson(**kept), pool["oldest"])


def train(trainer: Trainer) -> Iterator[Record]:
    """Run what is left of ``trainer``, a record a step; between two records its state is whole."""
    clock = time.perf_counter()
    for phase, steps, values in _advance(trainer):
        now = time.perf_counter()
        trainer.seconds += now - clock
        yield Record(phase, trainer.step, steps, trainer.seconds, values)
        clock = time.perf_counter()


def _advance(trainer: Trainer) -> Iterator[tuple[Phase, int, dict[str, float]]]:
    """Phase, steps it has and what was measured, after each step."""
    if trainer.phase == "generator":
        steps = trainer.generator_plan.steps
        while trainer.step < steps:
            parts = _generator_step(trainer)
            trainer.step += 1
            yield "generator", steps, _figures(parts, trainer.step, steps)
        trainer.phase, trainer.step = "calibration", 0
    if trainer.phase == "calibration":
        if not trainer.step:
            _calibrate(trainer)
            trainer.step = 1
            yield "calibration", 1, {}
        trainer.phase, trainer.step = "student", 0
    steps = trainer.student_plan.steps
    while trainer.step < steps:
        parts = _student_step(trainer)
        trainer.step += 1
        yield "student", steps, _figures(parts, trainer.step, steps)


def _generator_step(trainer: Trainer) -> dict[str, Tensor]:
    plan, teacher = trainer.generator_plan, trainer.teacher
    condition = draw(
        plan.batch // 2,
        noise_dim=plan.noise_dim,
        classes=teacher.classes,
        spread=plan.spread,
        rng=trainer.rng,
    )
    images = trainer.generator(condition)
    evaluated = teacher.read(images, condition.label, moments=True)
    trained = None
    if plan.weights.get("consistency"):
        trained = teacher.read(images, condition.label, batch_statistics=True)
    loss, parts = total(Step(condition, images, evaluated, trained, teacher.stored), plan.weights)
    factor = learning_rate_factor(trainer.step, plan.steps, rising=0.1)
    _descend(trainer.generator_optimizer, loss, factor)
    return parts


def _calibrate(trainer: Trainer) -> None:
    plan = trainer.student_plan
    trainer.pool = Pool(_fresh(trainer, plan.pool))
    images = trainer.pool.sample(plan.calibration_images, trainer.rng).images
    calibrate(trainer.student, images.split(64))  # type: ignore[no-untyped-call]


def _student_step(trainer: Trainer) -> dict[str, Tensor]:
    plan = trainer.student_plan
    assert trainer.pool is not None
    if plan.renew_count and trainer.step and trainer.step % plan.renew_every == 0:
        trainer.pool = trainer.pool.renewed(_fresh(trainer, plan.renew_count))
    lesson = mixed(trainer.pool.sample(plan.batch, trainer.rng), trainer.teacher, plan.mix, trainer.rng)
    parts = _compare(trainer, lesson)
    factor = learning_rate_factor(trainer.step, plan.steps, rising=0.02)
    _descend(trainer.student_optimizer, distillation.total(parts, plan.weights), factor)
    return parts


def _compare(trainer: Trainer, lesson: Lesson) -> dict[str, Tensor]:
    """The student's losses on a lesson, those alone that have a weight."""
    tap = trainer.teacher.anatomy.features
    logits, values = trainer.student.read(lesson.images, (tap,))
    formulas = {
        "logits": lambda: distillation.logit_match(logits, lesson.logits),
        "probabilities": lambda: distillation.probability_match(logits, lesson.logits),
        "features": lambda: distillation.feature_match(values[tap], lesson.features),
    }
    return {name: formulas[name]() for name, weight in trainer.student_plan.weights.items() if weight}


def _fresh(trainer: Trainer, count: int) -> Lesson:
    plan = trainer.generator_plan
    return synthesise(
        trainer.generator,
        trainer.teacher,
        count,
        noise_dim=plan.noise_dim,
        spread=plan.spread,
        rng=trainer.rng,
    )


def _groups(student: Student, plan: StudentPlan) -> list[dict[str, Any]]:
    """Scales are learned as logarithms, so their steps are relative and have a rate of their own."""
    scales: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        (scales if name.endswith("log_scale") else others).append(parameter)
    return [
        {"params": others, "lr": plan.learning_rate},
        {"params": scales, "lr": plan.scale_learning_rate},
    ]


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, factor: float) -> None:
    """One step at ``factor`` times each group's own rate."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    peaks = [group["lr"] for group in optimizer.param_groups]
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
    optimizer.step()
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak


def learning_rate_factor(step: int, steps: int, rising: float) -> float:
    """Linear rise over the first ``rising`` of the steps, then a cosine to zero; a function of the step alone."""
    peak = max(1, round(rising * steps))
    if step < peak:
        return (step + 1) / peak
    return 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak)))


def _figures(parts: Mapping[str, Tensor], step: int, steps: int) -> dict[str, float]:
    """The parts as numbers, now and then: reading a number makes an accelerator wait."""
    if step % _REPORT_EVERY and step != steps:
        return {}
    return {name: round(part.item(), 6) for name, part in parts.items()}
