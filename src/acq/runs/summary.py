"""The figures of a finished run, as ``summary.json`` holds them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import fx

from acq.analysis.conditioning import Conditioning, GeneratorQuality, dataset_conditioning, generator_quality
from acq.analysis.diagnostics import diagnose
from acq.analysis.expected_loss import ExpectedLoss, expected_loss
from acq.core.accuracies import ACCURACIES, accuracy_of, change_margin
from acq.core.evaluate import compared
from acq.core.memory import peak_memory_mb
from acq.core.outputs import Output
from acq.core.values import Preprocessing
from acq.files.images import LabelledImages, batches
from acq.network.constants import device_of
from acq.network.teacher import Teacher
from acq.quantization.node_plan import Plan
from acq.quantization.student import Student, float_bytes, mean_weight_bits, quantized_bytes
from acq.training.loop import Training
from acq.training.selection import CALIBRATED, FIRST, TRAINED, Selection

# a run that stopped before its last phase, by the name of the phase in which it did
STOPPED_IN = {"few": "after a few finished images", "student": "amid the student's training"}
_NEW_IMAGES = 1024  # generated images on which the generator is measured


def measure(
    training: Training, graph: fx.GraphModule, labelled: LabelledImages | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a trained run.

    Args:
        training: After its last step.
        graph: The traced network.
        labelled: Real images that report accuracy; None leaves accuracy unknown.

    Returns:
        The figures of the summary, and the diagnostics of the report.
    """
    clock, context, student = time.perf_counter(), training.context, training.context.student
    rng = torch.Generator(context.rng.device).manual_seed(context.rng.initial_seed() + 1)
    generator = None
    if training.steps_of("generator"):
        generator = generator_quality(context.generator, context.teacher, student, context.conditions, _NEW_IMAGES, rng)
    conditioning, centres = dataset_conditioning(context.teacher, context.dataset)
    diagnostics = diagnose(graph, student.plan, context.teacher, context.dataset.images, centres)
    training.seconds += time.perf_counter() - clock
    figures = {
        "output": student.answer.figures(),
        "features": context.teacher.features,
        **cost_figures(training),
        **quality_figures(context.selection, context.teacher.output, student.plan, conditioning, generator),
        **size_figures(student),
        **accuracy_figures(context.teacher, student, context.preprocessing, labelled),
    }
    return figures, diagnostics


def accuracies(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """The accuracy of teacher and student in a summary, in percent; None where it is not known."""
    known = accuracy_of(summary["output"]["kind"])
    before, after = (None, None) if known is None else (summary[f"teacher_{known.key}"], summary[known.key])
    return None if before is None or after is None else (before, after)


def margin_of_change(summary: Mapping[str, Any]) -> float | None:
    """Half the 95 % interval of the change of accuracy, in points; None where changed images are not counted."""
    lost, gained = summary.get("images_lost"), summary.get("images_gained")  # earlier runs did not count them
    return None if lost is None or gained is None else change_margin(lost, gained, summary["test_images"])


def cost_figures(training: Training) -> dict[str, Any]:
    """What a run cost: device, threads, seconds, memory and steps. Evaluation on real images is not included."""
    device = training.context.rng.device
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(training.seconds, 1),
        "peak_memory_mb": peak_memory_mb(device),
        "steps": {name: training.steps_of(name) for name in ("generator", "images", "student")},
        "stopped": None if training.stop is None else asdict(training.stop),
    }


def quality_figures(
    selection: Selection,
    output: Output,
    plan: Plan,
    conditioning: Conditioning,
    generator: GeneratorQuality | None,
) -> dict[str, Any]:
    """How close the student is to the teacher, and how closely images follow their conditions.

    Args:
        selection: Of the student.
        output: How the logits decide.
        plan: Of the student.
        conditioning: Of the finished images.
        generator: Of the generator's own images; None where there is no generator, and its figures are None.
    """
    known: dict[str, float | None] = dict.fromkeys((FIRST, CALIBRATED, TRAINED))
    losses = {name: round(quality.loss, 4) for name, quality in selection.candidates.items()}
    divergences = {name: round(quality.divergence, 5) for name, quality in selection.candidates.items()}
    return {
        "agreement": round(selection.final.agreement, 2),
        "is_at_chance": selection.is_at_chance(output),
        "student_loss": {**known, **losses, "selected": selection.selected},
        "student_divergence": {**known, **divergences},
        "expected_loss": _expected_figures(expected_loss(selection, output, plan)),
        "attention": _rounded(asdict(conditioning)),
        "generator": _generator_figures(generator),
    }


def _expected_figures(loss: ExpectedLoss | None) -> dict[str, float] | None:
    """The loss of accuracy to expect on real images, in percentage points, with its range; None where unknown."""
    return None if loss is None else {name: round(points, 2) for name, points in asdict(loss).items()}


def _generator_figures(generator: GeneratorQuality | None) -> dict[str, float | None]:
    if generator is None:
        return dict.fromkeys((*(field.name for field in fields(Conditioning)), "pair_distance", "agreement"))
    own = {**asdict(generator.conditioning), "pair_distance": generator.pair_distance}
    return {**_rounded(own), "agreement": round(generator.agreement, 2)}


def size_figures(student: Student) -> dict[str, Any]:
    """Sizes of the student's weights and scales, and how many operators stay in floating point.

    ``float_by_design`` counts those of them that the placement leaves there; the others are shortcomings.
    """
    plan = student.plan
    return {
        "float_bytes": float_bytes(student),
        "quantized_bytes": quantized_bytes(student),
        "mean_weight_bits": round(mean_weight_bits(student), 3),
        "float_operators": len(plan.float_nodes),
        "float_by_design": len(plan.float_nodes) - len(plan.missed_nodes),
    }


def accuracy_figures(
    teacher: Teacher, student: Student, preprocessing: Preprocessing, images: LabelledImages | None
) -> dict[str, Any]:
    """Accuracy in percent of teacher and student on labelled images: top-1, or the mean over labels; else None.

    ``teacher_top5`` and ``top5`` are there from 11 classes on.
    ``images_lost`` and ``images_gained`` count the images that the teacher alone and the student alone classify right.
    """
    known = teacher.output.accuracy
    figures: dict[str, Any] = {
        "test_images": None if images is None else len(images),
        **{f"{whose}{each.key}": None for each in ACCURACIES.values() for whose in ("teacher_", "")},
        **dict.fromkeys(("teacher_top5", "top5", "images_lost", "images_gained")),
    }
    if images is None or known is None:
        return figures
    shown = batches(images, preprocessing)
    found = compared(teacher, student.logits, shown, teacher.output, device_of(student))
    for whose, accuracy in (("teacher_", found.before), ("", found.after)):
        figures[f"{whose}{known.key}"] = round(accuracy.percent, 2)
        figures[f"{whose}top5"] = None if accuracy.top5 is None else round(accuracy.top5, 2)
    return {**figures, "images_lost": found.lost, "images_gained": found.gained}


def _rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}
