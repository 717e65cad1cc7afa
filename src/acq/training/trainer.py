"""The only loop: the generator learns from the teacher, its images are finished, the student learns from both.

It yields, others watch.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acq.core.evaluate import evaluating
from acq.core.processes import ALONE, Processes, over_whole_batches
from acq.core.values import Condition, GeneratorBatch, Preprocessing, Record
from acq.errors import RunError
from acq.network.teacher import Teacher, mixed_precision
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize
from acq.quantization.integers import convert_to_integers
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.rounding import images_that_fit, round_layers
from acq.quantization.student import Student
from acq.synthesis.augmentation import augment
from acq.synthesis.condition import draw
from acq.synthesis.dataset import DistillationBatch, SyntheticDataset, augmented, read, synthesise
from acq.synthesis.losses import total
from acq.synthesis.refinement import ImageBatch, begin, refine
from acq.training import guards as soundness
from acq.training import losses as distillation
from acq.training.guards import Control
from acq.training.selection import Selection, StudentQuality, fidelity, majority_share

Phase = Literal["generator", "images", "calibration", "student", "freezing"]
_REPORT_EVERY = 10
_KEEP_EVERY = 50  # steps between the states to which a run that goes wrong goes back
_CHECK_EVERY = {"cpu": 1}  # steps; elsewhere reading a number makes the device wait
_RATES = {
    "generator": "generator.learning_rate=3e-4",
    "images": "images.learning_rate=0.03",
    "student": "student.learning_rate=0.005",
}
_CAUTION = 0.3  # of the rate, after going back
_JUDGED, _PIXELS_JUDGED = 256, 1 << 21  # images, of whose views the student is judged at the end


@dataclass(frozen=True)
class GeneratorPlan:
    """How the generator is trained: weights of ``acq.synthesis.losses`` by name, and an Adam run with a cosine decay.

    Every ``consistency_every`` steps the consistency loss is taken, times that number. ``mixed`` takes products in
    bfloat16.
    """

    weights: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    noise_dim: int
    spread: float
    consistency_every: int = 1
    mixed: bool = False


@dataclass(frozen=True)
class ImagePlan:
    """How the pool's ``count`` images are finished, ``batch`` at a time: ``steps`` each, 0 to take them as generated.

    ``weights`` are those of ``acq.synthesis.losses`` by name, ``scene`` is the share of a scene in where images begin, ``mixed``
    takes products in bfloat16.
    """

    weights: Mapping[str, float]
    count: int
    batch: int
    steps: int
    learning_rate: float
    scene: float
    mixed: bool = False

    @property
    def total_steps(self) -> int:
        """Steps over all batches; one where images are taken as generated."""
        return max(1, self.steps * math.ceil(self.count / self.batch))


@dataclass(frozen=True)
class StudentPlan:
    """How the student is trained: weights of ``acq.training.losses`` by name, and an Adam run.

    Rates are in steps of the grid: ``learning_rate`` is that of weights and biases in mean steps of their layer's grid,
    ``scale_learning_rate`` that of scales in steps by which the end of a range moves. With ``equalization`` channels of
    what layers read are scaled before (``acq.quantization.equalization``). With ``rounding`` layers are
    rounded one after the other before the first step (``acq.quantization.rounding``), on as many of the ``calibration_images`` as
    memory allows: images of the pool and, where ``augment`` are wanted and room is left, another view of each.
    ``renew_count`` images, as generated, replace the oldest of the pool every ``renew_every`` steps; ``augment`` is the
    share of a batch of which the student sees another view (``acq.synthesis.augmentation``), read by the teacher anew.
    """

    weights: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    scale_learning_rate: float
    calibration_images: int
    equalization: bool
    rounding: bool
    renew_every: int
    renew_count: int
    augment: float

    def calibrated_on(self, images: int) -> int:
        """How many images calibration sees of a pool of ``images``, views of them counted in."""
        return min(self.calibration_images, images * (2 if self.augment else 1))


class Trainer:
    """Everything that a run trains and the place it is at; ``train`` moves it, ``state`` holds it whole.

    Each process of a ``team`` has one, made alike, and all move together.
    """

    def __init__(
        self,
        teacher: Teacher,
        generator: nn.Module,
        student: Student,
        preprocessing: Preprocessing,
        plans: tuple[GeneratorPlan, ImagePlan, StudentPlan],
        rng: torch.Generator,
        team: Processes = ALONE,
    ) -> None:
        self.team = team
        if team.size > 1:
            over_whole_batches(generator)
        self.teacher, self.generator, self.student = teacher, generator, student
        self.preprocessing = preprocessing
        self.generator_plan, self.image_plan, self.student_plan = plans
        self.rng = rng
        self.phase: Phase = "generator"
        self.step = 0
        self.seconds = 0.0
        self.draft: ImageBatch | None = None
        self.finished: list[Tensor] = []
        self.pool: SyntheticDataset | None = None
        self.control = Control()
        self.cautious: list[str] = []  # phases that went back once
        self.wrong: str | None = None  # with what was just done
        self.calibrated: dict[str, Tensor] | None = None  # the student before its first step, until its last
        self.outcome: Selection | None = None
        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(), self.generator_plan.learning_rate, betas=(0.5, 0.999), fused=True
        )
        self.student_optimizer = torch.optim.Adam(_groups(student, self.student_plan), fused=True)

    def state(self, team: Processes | None = None) -> dict[str, Any]:
        """All that is needed to go on exactly, with any number of processes: tensors, numbers and names alone.

        For ``ALONE`` images on their way are this process's rows alone.
        """
        pool, team = self.pool, team or self.team
        return {
            "phase": self.phase,
            "step": self.step,
            "seconds": self.seconds,
            "rng": self.rng.get_state(),
            "generator": self.generator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "student": self.student.state_dict(),
            "student_optimizer": self.student_optimizer.state_dict(),
            "draft": None if self.draft is None else self.draft.state(team),
            "finished": list(self.finished),
            "control": self.control.state(),
            "cautious": list(self.cautious),
            "calibrated": self.calibrated,
            "outcome": None if self.outcome is None else asdict(self.outcome),
            "pool": None if pool is None else {**vars(pool.lesson), "oldest": pool.oldest},
        }

    def restore(self, state: Mapping[str, Any], team: Processes | None = None) -> None:
        """Go back to where ``state`` was taken, for the same ``team``'s rows."""
        self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
        self.rng.set_state(state["rng"].cpu())
        self.generator.load_state_dict(state["generator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.student.load_state_dict(state["student"])
        self.student_optimizer.load_state_dict(state["student_optimizer"])
        if "control" in state:  # checkpoints had none before
            self.control.restore(state["control"])
            self.cautious = list(state["cautious"])
        outcome = state.get("outcome")  # nor these two
        self.outcome = None if outcome is None else Selection.restored(outcome)
        self.calibrated = state.get("calibrated")
        draft, pool, device = state["draft"], state["pool"], self.rng.device
        self.draft = None if draft is None else ImageBatch.restored(draft, device, team or self.team)
        self.finished = [images.to(device) for images in state["finished"]]
        self.pool = None
        if pool is not None:
            kept = {name: pool[name].to(device) for name in ("images", "logits", "features")}
            self.pool = SyntheticDataset(DistillationBatch(**kept), pool["oldest"])


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
    phases: tuple[tuple[Phase, int, Callable[[Trainer], dict[str, Tensor]]], ...] = (
        ("generator", trainer.generator_plan.steps, _generator_step),
        ("images", trainer.image_plan.total_steps, _image_step),
        ("calibration", 1, _calibrate),
        ("student", trainer.student_plan.steps, _student_step),
        ("freezing", 1, _convert),
    )
    for place, (phase, steps, take) in enumerate(phases):
        if phase != trainer.phase:
            continue  # done before a resumption
        kept: dict[str, Any] = {}
        while trainer.step < steps:
            if not kept or trainer.step % _KEEP_EVERY == 0:
                kept = _kept(trainer)
            parts = take(trainer)
            trainer.step += 1
            wrong = _wrong(trainer, parts, kept, steps)
            if wrong is not None:
                _go_back(trainer, kept, wrong)
                continue
            yield phase, steps, _figures(parts, trainer.step, steps)
        for following, _, _ in phases[place + 1 : place + 2]:
            trainer.phase, trainer.step = following, 0


def _kept(trainer: Trainer) -> dict[str, Any]:
    """The state as it is now: copies of what training changes in place."""
    state = trainer.state(ALONE)
    shared = {"pool", "finished", "calibrated"}  # tensors that are replaced and never changed
    return {name: value if name in shared else copy.deepcopy(value) for name, value in state.items()}


def _wrong(trainer: Trainer, parts: Mapping[str, Tensor], kept: Mapping[str, Any], steps: int) -> str | None:
    """What went wrong since the last look, in any process; None if nothing did or this is no step to look."""
    if trainer.step % _CHECK_EVERY.get(trainer.rng.device.type, _REPORT_EVERY) and trainer.step != steps:
        return None
    seen, trainer.wrong = trainer.wrong, None
    found = soundness.nonfinite_losses(parts) or seen
    if found is None and trainer.phase == "student" and (trainer.step % _REPORT_EVERY == 0 or trainer.step == steps):
        found = soundness.changed_range(kept["student"], trainer.student.state_dict())
    (anywhere,) = trainer.team.any(found is not None)  # what is rounded otherwise may be judged otherwise
    return found or ("another process says so" if anywhere else None)


def _go_back(trainer: Trainer, kept: Mapping[str, Any], wrong: str) -> None:
    """To the last good state, to go on with a smaller rate; once in a phase, else the run has failed."""
    place = f"{trainer.phase} step {trainer.step}: {wrong}"
    if trainer.phase in trainer.cautious:
        raise RunError(
            f"training went wrong at {place}; going back once with {_CAUTION} of the rate did not help. "
            f"Give a smaller rate, such as --set {_RATES[trainer.phase]}, and look at what was logged"
        )
    warnings.warn(
        f"training went wrong at {place}; back to step {kept['step']} with {_CAUTION} of the rate", stacklevel=2
    )
    phase, seconds = trainer.phase, trainer.seconds
    trainer.restore(copy.deepcopy(dict(kept)), ALONE)  # optimizers take the tensors themselves
    trainer.seconds = seconds
    trainer.cautious.append(phase)


def _generator_step(trainer: Trainer) -> dict[str, Tensor]:
    plan, teacher, team = trainer.generator_plan, trainer.teacher, trainer.team
    condition = _condition(trainer, plan.batch // 2)
    with mixed_precision(trainer.rng.device, plan.mixed):
        images = trainer.generator(Condition(*map(team.share, vars(condition).values())))
    evaluated = teacher.read(images, condition.label, moments=True, mixed=plan.mixed, team=team)
    weights, trained = _weights_now(plan, trainer.step + 1), None
    if weights.get("consistency"):
        trained = teacher.read(images, condition.label, batch_statistics=True, mixed=plan.mixed, team=team)
    whole = team.gather(images, len(condition.label))
    loss, parts = total(GeneratorBatch(condition, whole, evaluated, trained, teacher.stored_moments), weights)
    factor = learning_rate_factor(trainer.step, plan.steps, rising=0.1)
    _descend(trainer.generator_optimizer, loss, factor * _pace(trainer), team)
    if trainer.rng.device.type in _CHECK_EVERY or trainer.step % _REPORT_EVERY == 0:
        trainer.wrong = trainer.control.see(condition.label, condition.centre, evaluated) or trainer.wrong
    return parts


def _weights_now(plan: GeneratorPlan, step: int) -> dict[str, float]:
    """The consistency loss has a forward pass of its own: it is taken now and then, for the steps between too."""
    alone = not any(weight for name, weight in plan.weights.items() if name != "consistency")
    every = 1 if alone else plan.consistency_every
    factor = 0 if step % every else every
    return {name: weight * (factor if name == "consistency" else 1) for name, weight in plan.weights.items()}


def _image_step(trainer: Trainer) -> dict[str, Tensor]:
    """One step of one batch of images; the last batch's last step makes the pool."""
    plan, team = trainer.image_plan, trainer.team
    if not plan.steps:
        trainer.pool = SyntheticDataset(_fresh(trainer, plan.count))
        return {}
    if trainer.draft is None:
        trainer.draft = _begun(trainer, min(plan.batch, plan.count - sum(map(len, trainer.finished))))
    step = trainer.step % plan.steps
    loss, parts = refine(
        trainer.draft, trainer.teacher, trainer.preprocessing, plan.weights, trainer.rng, mixed=plan.mixed, team=team
    )
    factor = learning_rate_factor(step, plan.steps, rising=0.05)
    _descend(trainer.draft.optimizer, loss, factor * _pace(trainer), ALONE)  # each its own pixels
    if step + 1 == plan.steps:
        rows = trainer.draft.images(trainer.preprocessing).detach()
        trainer.finished.append(team.gather(rows, len(trainer.draft.condition.label)))
        trainer.draft = None
    if trainer.step + 1 == plan.total_steps:
        trainer.pool = SyntheticDataset(read(torch.cat(trainer.finished), trainer.teacher, team=team))
        trainer.finished = []
    return parts


def _begun(trainer: Trainer, count: int) -> ImageBatch:
    plan = trainer.image_plan
    condition = _condition(trainer, (count + 1) // 2)
    with evaluating(trainer.generator):
        proposals = trainer.generator(condition)
    return begin(
        proposals,
        condition,
        trainer.preprocessing,
        scene=plan.scene,
        learning_rate=plan.learning_rate,
        rng=trainer.rng,
        team=trainer.team,
    )


def _condition(trainer: Trainer, pairs: int) -> Condition:
    plan = trainer.generator_plan
    return draw(pairs, noise_dim=plan.noise_dim, classes=trainer.teacher.classes, spread=plan.spread, rng=trainer.rng)


def _calibrate(trainer: Trainer) -> dict[str, Tensor]:
    assert trainer.pool is not None
    plan = trainer.student_plan
    images = trainer.pool.sample(plan.calibration_images, trainer.rng).images
    more = plan.calibrated_on(len(images)) - len(images)
    if more:  # the student will see such
        images = torch.cat((images, augment(images, trainer.rng)[:more]))
    batches = images.split(64)  # type: ignore[no-untyped-call]
    calibrate(trainer.student, batches)
    if plan.equalization and equalize(trainer.student, batches, keep={trainer.teacher.structure.features}):
        calibrate(trainer.student, batches)
    if plan.rounding:
        fitting = images[: images_that_fit(trainer.student)]
        round_layers(trainer.student, fitting.split(64))  # type: ignore[no-untyped-call]
    trainer.team.agree(trainer.student.state_dict().values())
    for group, (_, layer) in zip(trainer.student_optimizer.param_groups, trainer.student.layers(), strict=False):
        group["lr"] = plan.learning_rate * layer.weight_quantizer.scale.mean().item()
    if plan.steps:
        trainer.calibrated = copy.deepcopy(trainer.student.state_dict())
    return {}


def _student_step(trainer: Trainer) -> dict[str, Tensor]:
    plan = trainer.student_plan
    assert trainer.pool is not None
    if plan.renew_count and trainer.step and trainer.step % plan.renew_every == 0:
        trainer.pool = trainer.pool.renewed(_fresh(trainer, plan.renew_count))
    lesson = augmented(
        trainer.pool.sample(plan.batch, trainer.rng), trainer.teacher, plan.augment, trainer.rng, trainer.team
    )
    parts = _compare(trainer, lesson)
    factor = learning_rate_factor(trainer.step, plan.steps, rising=0.02)
    _descend(trainer.student_optimizer, distillation.total(parts, plan.weights), factor * _pace(trainer), trainer.team)
    return parts


def _convert(trainer: Trainer) -> dict[str, Tensor]:
    trainer.outcome, trainer.calibrated = _judge(trainer), None
    convert_to_integers(trainer.student)
    trainer.team.agree(trainer.student.state_dict().values())
    return {}


def _judge(trainer: Trainer) -> Selection:
    """Leave the student that is nearer the teacher in place: the trained one, or the calibrated one that it was."""
    lessons = _unseen(trainer)
    most, found = majority_share(lessons), _fidelity(trainer, lessons)
    if not trainer.student_plan.steps:
        return Selection(found, None, "calibrated", most)
    if trainer.calibrated is None:  # resumed from a checkpoint of before there was one
        return Selection(None, found, "trained", most)
    trained = copy.deepcopy(trainer.student.state_dict())
    trainer.student.load_state_dict(trainer.calibrated)
    before = _fidelity(trainer, lessons)
    (worse,) = trainer.team.any(found.worse(before))
    if not worse:
        trainer.student.load_state_dict(trained)
    return Selection(before, found, "calibrated" if worse else "trained", most)


def _unseen(trainer: Trainer) -> list[DistillationBatch]:
    """Views of the pool's first images, always the same ones: on the images themselves, on which its layers were
    rounded, a calibrated student looks nearer than it is."""
    assert trainer.pool is not None
    images, device = trainer.pool.lesson.images, trainer.rng.device
    count = min(len(images), _JUDGED, max(2, _PIXELS_JUDGED // (images.shape[2] * images.shape[3])))
    parts = torch.arange(count, device=device).split(trainer.student_plan.batch)  # type: ignore[no-untyped-call]
    rng = torch.Generator(device).manual_seed(0)
    return [augmented(trainer.pool.lesson.at(part), trainer.teacher, 1.0, rng) for part in parts]


def _fidelity(trainer: Trainer, lessons: Sequence[DistillationBatch]) -> StudentQuality:
    return fidelity(trainer.student, trainer.teacher.structure.features, lessons, trainer.student_plan.weights)


def _compare(trainer: Trainer, lesson: DistillationBatch) -> dict[str, Tensor]:
    """The student's losses on a lesson, those alone that have a weight."""
    tap, team = trainer.teacher.structure.features, trainer.team
    rows, values = trainer.student.read(team.share(lesson.images), (tap,))
    logits, features = (team.gather(part, len(lesson.images)) for part in (rows, values[tap]))
    return distillation.parts((logits, features), (lesson.logits, lesson.features), trainer.student_plan.weights)


def _fresh(trainer: Trainer, count: int) -> DistillationBatch:
    plan = trainer.generator_plan
    return synthesise(
        trainer.generator,
        trainer.teacher,
        count,
        noise_dim=plan.noise_dim,
        spread=plan.spread,
        rng=trainer.rng,
        team=trainer.team,
    )


def _groups(student: Student, plan: StudentPlan) -> list[dict[str, Any]]:
    """A group a layer, whose rate is known once its grid is (``_calibrate``), and one for the scales of each range.

    Scales are learned as logarithms: a change of one by 1 / high moves the end of the range by a step.
    """
    layers = [
        {"params": [layer.weight, *([] if layer.bias is None else [layer.bias])], "lr": 0.0}
        for _, layer in student.layers()
    ]
    scales: dict[int, list[nn.Parameter]] = {}
    for quantizer in student.modules():
        if isinstance(quantizer, WeightQuantizer | ActivationQuantizer):
            scales.setdefault(quantizer.qmax, []).append(quantizer.log_scale)
    widths = [{"params": params, "lr": plan.scale_learning_rate / high} for high, params in scales.items()]
    return [*layers, *widths]


def _pace(trainer: Trainer) -> float:
    """1, or less after the phase went wrong."""
    return _CAUTION if trainer.phase in trainer.cautious else 1.0


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, factor: float, team: Processes) -> None:
    """One step at ``factor`` times each group's own rate, of parameters that all of ``team`` have."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    team.sum_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
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
