"""``acq quantize --dry-run``: the plan, the settings, and how long a run would take on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acq.cli.output import plan_rows, print_json, print_lines, print_plan
from acq.config import Config
from acq.core.memory import keep_freed_memory
from acq.core.units import in_minutes
from acq.files.images import read
from acq.recipe import Prepared, Request, prepare
from acq.training.calibration import Calibration
from acq.training.distillation import Distillation
from acq.training.first_student import FirstStudent
from acq.training.generator import GeneratorTraining
from acq.training.images import ImageRefinement

_STEPS = 3  # timed steps per phase
_IMAGES = 64  # most images of the timed calibration
_NEVER = 1e-30  # divergence that no student has, so that the timed run leaves out no phase


def describe(
    request: Request, out: Path, data: Path | None, as_json: bool, *, export: bool = True, engines: Sequence[str] = ()
) -> None:
    """Print what ``acq quantize`` would do. Nothing is written.

    Args:
        request: What is asked for.
        out: The run folder.
        data: Labelled images; None without any.
        as_json: Whether to print one JSON object.
        export: Whether the run writes a file.
        engines: Names of engines that must run the file.
    """
    prepared = prepare(request)
    context = prepared.training.context
    rehearsal = request.rehearsal_of(context.student, export=export)
    rehearsal.require_file(engines)
    if data is not None:
        read(data, preprocessing=request.preprocessing, output=context.teacher.output, names=prepared.class_names)
    seconds = {phase: round(value, 1) for phase, value in estimate(request, prepared).items()}
    plan, config = context.student.plan, prepared.config
    if as_json:
        settings, answer = config.model_dump(mode="json"), context.student.answer.figures()
        print_json(
            {
                "run": str(out),
                "config": settings,
                "output": answer,
                "plan": plan_rows(plan, rehearsal),
                "seconds": seconds,
            }
        )
        return
    print_plan(plan, rehearsal)
    print_lines([f"it answers with {context.student.answer}"])
    parts = ", ".join(f"{phase} {value:.0f} s" for phase, value in seconds.items())
    steps_of = prepared.training.steps_of
    print_lines(
        [
            "",
            config.to_yaml().rstrip(),
            "",
            f"steps: {', '.join(f'{name} {steps_of(name)}' for name in ('generator', 'images', 'student'))}, "
            f"on {context.rng.device}",
            f"time: about {in_minutes(sum(seconds.values()))} ({parts}), and a tenth more for the report",
            *_early_end(seconds),
            f"would write {out}; nothing was written",
        ]
    )


def _early_end(seconds: Mapping[str, float]) -> list[str]:
    """The time of a run that ends after its few images, as a line; nothing where none can."""
    if "few" not in seconds:
        return []
    return [f"it may end after phase few, in about {in_minutes(seconds['first'] + seconds['few'])}"]


def estimate(request: Request, prepared: Prepared) -> dict[str, float]:
    """Seconds per phase, from the first steps of each phase with the same settings.

    The fastest timed step stands for all steps of a phase, because the first ones also warm up. Calibration is taken to
    grow with the number of images, which is an upper bound. Renewals and the evaluation at the end are not included.

    Args:
        request: As for the run.
        prepared: The run that is estimated; it does not change.
    """
    keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in prepared.training.phases}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a student of three steps says nothing about that of the whole run
        short = prepare(replace(request, config=_shortened(prepared)))
        before = short.training.seconds
        for record in short.training.run():
            times[record.phase].append(record.seconds - before)
            before = record.seconds
    paces = {phase: min(found, default=0.0) for phase, found in times.items()}
    period = _period(prepared.config)
    if 1 < period <= len(times.get("generator", [])):  # its last step is the one with the consistency loss
        paces["generator"] += max(0.0, times["generator"][period - 1] - paces["generator"]) / period
    seconds = {phase: paces[phase] * count for phase, count in _counts(prepared, short).items()}
    if times.get("few"):  # its last step calibrates a student and judges
        seconds["few"] += times["few"][-1] - paces["few"]
    return seconds


def _counts(prepared: Prepared, short: Prepared) -> dict[str, float]:
    """How often the timed unit of each phase occurs in the whole run."""
    whole, timed = prepared.training.phases, short.training.phases
    counts = {name: float(phase.steps) for name, phase in whole.items()}
    images, timed_images = whole["images"], timed["images"]
    calibration, timed_calibration = whole["calibration"], timed["calibration"]
    assert isinstance(images, ImageRefinement) and isinstance(timed_images, ImageRefinement)  # noqa: PT018
    assert isinstance(calibration, Calibration) and isinstance(timed_calibration, Calibration)  # noqa: PT018
    if not images.settings.steps:
        counts["images"] = images.count / timed_images.count
    first, timed_first = whole.get("first"), timed.get("first")
    if isinstance(first, FirstStudent) and isinstance(timed_first, FirstStudent):
        counts["first"] = first.count / timed_first.count
    counts["calibration"] = calibration.images_of(images.count) / timed_calibration.images_of(timed_images.count)
    return counts


def _shortened(prepared: Prepared) -> Config:
    """The settings with few steps and images, but the same batches."""
    config, phases = prepared.config, prepared.training.phases
    generator, images = phases.get("generator"), phases["images"]
    calibration, student = phases["calibration"], phases["student"]
    assert isinstance(images, ImageRefinement)
    assert isinstance(calibration, Calibration)
    assert isinstance(student, Distillation)
    changes: dict[str, Mapping[str, Any]] = {
        "images": {
            "count": min(images.batch, images.count),
            "batch": images.batch,
            "steps": min(_STEPS, config.images.steps),
        },
        "calibration": {
            "images": min(_IMAGES, calibration.count, images.batch),
            "enough": min(_NEVER, config.calibration.enough),
        },
        "student": {"steps": min(_STEPS, student.steps), "batch": student.batch},
    }
    if isinstance(generator, GeneratorTraining):
        steps = min(max(_STEPS, _period(config)), generator.steps)
        changes["generator"] = {"steps": steps, "batch": generator.batch}
    sections = {name: getattr(config, name).model_copy(update=dict(change)) for name, change in changes.items()}
    return config.model_copy(update={**sections, "budget": None})


def _period(config: Config) -> int:
    return config.generator.consistency_every if config.generator.losses.consistency else 1
