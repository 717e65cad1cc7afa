"""The story: read a trained network, learn to imagine its images, quantize it, teach the result, keep it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import fx, nn

from acq.analysis.conditioning import Review, fresh_steps, review
from acq.analysis.diagnostics import insight
from acq.config import Config, Device
from acq.core.processes import ALONE, Processes, under_torchrun
from acq.core.values import Preprocessing, Record
from acq.errors import Interrupted, RequestError, nearest
from acq.files.images import LabelledImages, read
from acq.network.teacher import Teacher
from acq.network.trace import is_depthwise, trace, weights_hash
from acq.quantization.allocation import allocate, costs
from acq.quantization.plan import NumberFormat, plan
from acq.quantization.student import Student, build
from acq.runs import student_file as artifact
from acq.runs.folder import BOARD, RunFolder, claim, summary_of
from acq.runs.malloc import hand_back_freed_memory
from acq.runs.signals import stop_requested
from acq.runs.summary import accuracy_figures, run_figures, sample_rows
from acq.runs.tensorboard import board, require
from acq.synthesis.generators import GENERATORS
from acq.synthesis.scenes import normalised_scenes
from acq.training.selection import Selection
from acq.training.trainer import GeneratorPlan, ImagePlan, StudentPlan, Trainer, train

Watch = Callable[[Record], None]
_FRESH = 1024  # images of no pool, on which agreement and control are measured
_FEWEST_PICTURES, _PIXELS_OF_PICTURES = 8, 1 << 17  # on which layers' bits are chosen
_SAVE_EVERY = 60.0  # seconds between checkpoints: bounds both what a crash loses and what saving costs


@dataclass(frozen=True)
class Request:
    """A network, what its images are like and how to quantize it; ``origin`` says in JSON values where the network
    came from, for the record. ``graph`` is the network's trace, with the weights that it has now, and ``seconds`` what
    that took."""

    model: nn.Module
    preprocessing: Preprocessing
    config: Config
    origin: Mapping[str, Any]
    graph: fx.GraphModule = field(init=False, repr=False)
    seconds: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Trace the model; settings that were left open follow it and its images, bits that are ``auto`` too, so that
        the record holds what was used.

        Raises:
            RequestError: the network cannot be traced, or bits are ``auto`` and no layer is left to choose them for.
        """
        clock, size = time.perf_counter(), self.preprocessing.input_size
        graph = trace(self.model, size)
        config = self.config.fitted(size, depthwise=is_depthwise(graph))
        if config.automatic:
            layers = _allocated(graph, self.preprocessing, config)
            config = config.model_copy(update={"layers": layers | config.layers})
        for name, value in (("graph", graph), ("config", config), ("seconds", time.perf_counter() - clock)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Result:
    """The quantized network, the figures of its run, and the folder that holds both (None if none was asked for)."""

    student: Student
    summary: dict[str, Any]
    folder: Path | None


def run(
    request: Request,
    out: Path | None = None,
    *,
    data: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    tensorboard: bool = False,
    team: Processes = ALONE,
) -> Result:
    """Quantize ``request.model`` without its data; the labelled images at ``data`` only report, at the end.

    With ``out`` the run can be interrupted (Ctrl-C, SIGTERM) and resumed exactly; resuming a finished run returns
    it, with its accuracy on ``data``. ``watch`` is called with every record, and with ``tensorboard`` they go to
    ``out/tensorboard`` too. The model itself is left as it was. In a ``team`` of several processes this is what its
    leader does, with ``out``; the others ``follow``.

    Raises:
        RequestError: the request is wrong; nothing was written.
        Interrupted: the run was told to stop and its state is saved.
    """
    if tensorboard:
        require()
    if out is None and (tensorboard or resume or overwrite):
        what = "TensorBoard's files are kept" if tensorboard else "what is resumed or overwritten is"
        raise RequestError(f"{what} in the run folder; give out")
    trainer = prepare(request, team)
    images = None if data is None else _images(request, trainer, data)
    watches = [] if watch is None else [watch]
    if out is None:
        for record in _records(trainer):
            _tell(watches, record)
        _warn(trainer.outcome)
        return Result(trainer.student.eval(), summarise(request, trainer, look(request, trainer), images), None)
    with claim(out, _settings(request, trainer), resume=resume, overwrite=overwrite) as folder:
        finished = summary_of(out) if artifact.exists(out) else None
        state = folder.load_state() if resume and finished is None else None
        team.tell({"finished": finished is not None, "state": state}, trainer.rng.device)
        if finished is not None:
            student = artifact.load(out)
            if images is not None:
                finished |= accuracy_figures(trainer.teacher, student, request.preprocessing, images)
                folder.write_summary(finished)
            return Result(student, finished, out)
        if state is not None:
            trainer.restore(state)
        with board(out / BOARD, trainer) if tensorboard else nullcontext() as show:
            _train_in(folder, trainer, [*watches, *([] if show is None else [show])])
        team.dissolve()
        _warn(trainer.outcome)
        seen = look(request, trainer)
        folder.write_samples(*sample_rows(seen.samples, request.preprocessing))
        folder.write_insight(_insight(request, trainer, seen))
        summary = summarise(request, trainer, seen, images)
        artifact.save(trainer.student, out, _facts(request, trainer))
        folder.write_summary(summary)
    return Result(trainer.student.eval(), summary, out)


def follow(request: Request, team: Processes) -> None:
    """Take part in the ``run`` of a team's leader, and write nothing.

    Raises:
        RequestError: the request is wrong.
        RunError: another process of the team is gone.
        Interrupted: the run was told to stop.
    """
    trainer = prepare(request, team)
    said = team.tell(None, trainer.rng.device)
    if said["finished"]:
        return
    if said["state"] is not None:
        trainer.restore(said["state"])
    with stop_requested(once=False) as stopping:
        for _ in _records(trainer):
            stop, save = team.any(stopping(), False)
            if stop or save:
                trainer.state()  # its rows, for what the leader saves
            if stop:
                raise Interrupted
    team.dissolve()


def prepare(request: Request, team: Processes = ALONE) -> Trainer:
    """Everything up to the first step: the teacher read, the student planned and built, the generator made.

    Raises:
        RequestError: the network lacks what is needed, a setting is not known, or a batch has not a pair of images for
            each process of the ``team``.
    """
    clock = time.perf_counter()
    config, device = request.config, choose_device(request.config.device)
    graph = request.graph
    layout = plan(graph, _bits(config), config.placement, config.layers)
    teacher = Teacher(graph).to(device)
    trainer = Trainer(
        teacher,
        _generator(request, teacher.classes).to(device),
        build(graph, layout, request.preprocessing).to(device),
        request.preprocessing,
        _plans(config),
        torch.Generator(device).manual_seed(config.seed),
        team,
    )
    _check_shares(trainer)
    trainer.seconds = request.seconds + time.perf_counter() - clock
    return trainer


def look(request: Request, trainer: Trainer) -> Review:
    """The generator and the student of a trained run on fresh images."""
    settings, device, clock = request.config.generator, trainer.rng.device, time.perf_counter()
    seen = review(
        fresh_steps(
            trainer.generator,
            trainer.teacher,
            _FRESH,
            noise_dim=settings.noise_dim,
            spread=settings.spread,
            rng=torch.Generator(device).manual_seed(request.config.seed + 1),
        ),
        trainer.student,
    )
    trainer.seconds += time.perf_counter() - clock
    return seen


def summarise(request: Request, trainer: Trainer, seen: Review, images: LabelledImages | None) -> dict[str, Any]:
    """What came of a run in figures; ``images`` are real ones, on which accuracy is reported where they are given."""
    config = request.config
    return {
        "model": request.origin.get("model"),
        "bits": config.bits,
        "placement": config.placement,
        "ends": config.ends,
        "addends": config.addends if config.placement == "deployable" else None,  # sums are not quantized else
        "preset": config.preset,
        "seed": config.seed,
        **run_figures(trainer, seen),
        **accuracy_figures(trainer.teacher, trainer.student, request.preprocessing, images),
    }


def _check_shares(trainer: Trainer) -> None:
    images = trainer.image_plan
    last = images.count % images.batch or images.batch  # of what is drawn together
    smallest = min(trainer.generator_plan.batch, trainer.student_plan.batch, last)
    if not trainer.team.serves(smallest):
        pairs = (smallest + 1) // 2
        raise RequestError(
            f"{trainer.team.size} processes share batches of which the smallest has {pairs} pairs of images; start at "
            f"most {pairs}, or give larger batches (generator.batch, images.batch, student.batch)"
        )


def _bits(config: Config) -> NumberFormat:
    bits = NumberFormat.parse(config.bits, config.ends, config.addends)
    power_of_two = config.binary_scales and config.placement == "deployable" and bits.activation == 8
    return replace(bits, reduce_range=config.reduce_range, power_of_two=power_of_two)


def _allocated(graph: fx.GraphModule, preprocessing: Preprocessing, config: Config) -> dict[str, int]:
    """Bits of the layers whose bits nothing else says, by what each costs on procedural pictures."""
    bits = _bits(config)
    layout, other = (plan(graph, each, config.placement, config.layers) for each in (bits, replace(bits, weight=2)))
    pairs = zip(layout.sites, other.sites, strict=True)
    free = {site.node for site, changed in pairs if site.weight_bits != changed.weight_bits}
    if not free and not config.layers:
        raise RequestError("bits are auto, but every layer has bits by `ends` or `layers`; give ends same, or bits")
    _, height, width = preprocessing.input_size
    count = max(_FEWEST_PICTURES, _PIXELS_OF_PICTURES // (height * width))
    pictures = normalised_scenes(count, preprocessing, torch.Generator().manual_seed(0))
    found = costs(build(graph, layout), torch.split(pictures, _FEWEST_PICTURES), free, reduce_range=bits.reduce_range)
    assert config.budget is not None
    return allocate(found, config.budget)


def _insight(request: Request, trainer: Trainer, seen: Review) -> dict[str, Any]:
    assert trainer.pool is not None
    clock = time.perf_counter()
    found = insight(request.graph, trainer.student.plan, trainer.teacher, trainer.pool.lesson.images, seen)
    trainer.seconds += time.perf_counter() - clock
    return found


def _images(request: Request, trainer: Trainer, path: Path) -> LabelledImages:
    return read(path, input_size=request.preprocessing.input_size, classes=trainer.teacher.classes)


def choose_device(wish: str) -> torch.device:
    """``auto`` takes a CUDA device where there is one; RequestError if ``cuda`` is asked for and absent."""
    if wish not in get_args(Device):
        raise RequestError(f"device {wish!r} is not known; give one of {', '.join(get_args(Device))}")
    there = torch.cuda.is_available()
    if wish == "cuda" and not there:
        raise RequestError("no CUDA device is available; give --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if there and wish != "cpu" else "cpu")


def _generator(request: Request, classes: int) -> nn.Module:
    settings = request.config.generator
    if settings.kind not in GENERATORS:
        raise RequestError(
            f"generator.kind {settings.kind!r} is not known{nearest(settings.kind, GENERATORS)}; "
            f"give one of {', '.join(GENERATORS)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.config.seed)
        return GENERATORS[settings.kind](
            request.preprocessing, classes, noise_dim=settings.noise_dim, width=settings.width
        )


def _plans(config: Config) -> tuple[GeneratorPlan, ImagePlan, StudentPlan]:
    generator, images, student = config.generator, config.images, config.student
    assert generator.batch is not None  # a request fits its configuration to the images
    assert images.batch is not None
    assert images.count is not None
    assert student.batch is not None
    assert student.steps is not None
    assert student.equalization is not None
    return (
        GeneratorPlan(
            weights=generator.losses.model_dump(),
            steps=generator.steps,
            batch=generator.batch,
            learning_rate=generator.learning_rate,
            noise_dim=generator.noise_dim,
            spread=generator.spread,
            consistency_every=generator.consistency_every,
            mixed=config.precision == "mixed",
        ),
        ImagePlan(
            weights=images.losses.model_dump(),
            count=images.count,
            batch=images.batch,
            steps=images.steps,
            learning_rate=images.learning_rate,
            scene=images.scene,
            mixed=config.precision == "mixed",
        ),
        StudentPlan(
            weights=student.losses.model_dump(),
            steps=student.steps,
            batch=student.batch,
            learning_rate=student.learning_rate,
            scale_learning_rate=student.scale_learning_rate,
            calibration_images=student.calibration_images,
            equalization=student.equalization,
            rounding=student.rounding,
            renew_every=images.renew_every,
            renew_count=images.renew_count,
            augment=student.augment,
        ),
    )


def _records(trainer: Trainer) -> Iterator[Record]:
    """The records of the run; between two phases memory that the one has freed is not kept from the other."""
    for record in train(trainer):
        if record.step == record.steps:
            hand_back_freed_memory()
        yield record


def _train_in(folder: RunFolder, trainer: Trainer, watches: Sequence[Watch]) -> None:
    saved, team = time.perf_counter(), trainer.team
    with stop_requested(once=not under_torchrun()) as stopping:
        for record in _records(trainer):
            if record.values:
                folder.log(record)
            _tell(watches, record)
            stop, save = team.any(stopping(), time.perf_counter() - saved > _SAVE_EVERY)
            if stop or save:
                folder.save_state(trainer.state())
                saved = time.perf_counter()
            if stop:
                raise Interrupted(
                    f"stopped at {record.phase} step {record.step} of {record.steps}; "
                    f"the state is saved in {folder.path}, go on with --resume"
                )
        folder.save_state(trainer.state())


def _warn(outcome: Selection | None) -> None:
    """Of a student that training made worse, and of one that is of no use."""
    if outcome is None:  # of a run that an earlier version froze
        return
    before, after = outcome.calibrated, outcome.trained
    if before is not None and after is not None and outcome.kept == "calibrated":
        warnings.warn(
            "training took the student further from the network: on views of its own images the loss went from "
            f"{before.loss:.3g} to {after.loss:.3g} and agreement from {before.agreement:.1f} to "
            f"{after.agreement:.1f} %; the calibrated student is kept. Give a smaller rate, such as "
            "--set student.learning_rate=0.005, or more student.steps, or 0",
            stacklevel=3,
        )
    if outcome.at_chance:
        warnings.warn(
            f"the student is of no use: it agrees with the network on {outcome.student.agreement:.1f} % of views of "
            f"its own images, and one that gives a single class always on {outcome.majority_share:.1f} %. Give more --bits, "
            "or better images (images.count, images.steps)",
            stacklevel=3,
        )


def _settings(request: Request, trainer: Trainer) -> dict[str, Any]:
    """What ``config.yaml`` holds: all that decides the result, and where the network came from."""
    return {
        "origin": dict(request.origin),
        "teacher": weights_hash(trainer.teacher),
        "preprocessing": {key: _listed(value) for key, value in asdict(request.preprocessing).items()},
        "config": request.config.model_dump(mode="json"),
    }


def _facts(request: Request, trainer: Trainer) -> dict[str, Any]:
    """What is saved with the student, so that it can be used without the network it came from."""
    return {**_settings(request, trainer), "classes": trainer.teacher.classes}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tell(watches: Sequence[Watch], record: Record) -> None:
    for watch in watches:
        watch(record)
