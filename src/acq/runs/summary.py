"""The figures of a finished run, as ``summary.json`` and ``samples/`` hold them."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from acq.analysis.conditioning import Review, Samples
from acq.core.evaluate import accuracy
from acq.core.values import Preprocessing
from acq.files.images import LabelledImages, batches, to_bytes
from acq.quantization.student import float_bytes, mean_weight_bits, quantized_bytes
from acq.training.selection import Selection
from acq.training.trainer import Trainer


def run_figures(trainer: Trainer, seen: Review) -> dict[str, Any]:
    """Cost, agreement, control and size of a run; seconds leave out evaluation on real images."""
    student, device = trainer.student, trainer.rng.device
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(trainer.seconds, 1),
        "peak_memory_mb": peak_memory_mb(device),
        "steps": {
            "generator": trainer.generator_plan.steps,
            "images": trainer.image_plan.total_steps if trainer.image_plan.steps else 0,
            "student": trainer.student_plan.steps,
        },
        "student_loss": _student_loss(trainer.outcome),
        "agreement": None if seen.agreement is None else round(seen.agreement, 2),
        "attention": {name: round(value, 4) for name, value in asdict(seen.control).items()},
        "float_bytes": float_bytes(student),
        "quantized_bytes": quantized_bytes(student),
        "mean_weight_bits": round(mean_weight_bits(student), 3),
        "floating": len(student.plan.floating),
    }


def _student_loss(outcome: Selection | None) -> dict[str, Any]:
    """The student's losses on views of its own images before and after training, and which student was kept."""
    if outcome is None:  # of a run that an earlier version ended
        return {"calibrated": None, "trained": None, "kept": None}
    both = {"calibrated": outcome.calibrated, "trained": outcome.trained}
    losses = {name: None if found is None else round(found.loss, 4) for name, found in both.items()}
    return {**losses, "kept": outcome.kept}


def accuracy_figures(
    teacher: nn.Module, student: nn.Module, preprocessing: Preprocessing, images: LabelledImages | None
) -> dict[str, Any]:
    """Top-1 in percent of teacher and student on labelled images, or None for each where there are none."""

    def top1(network: nn.Module) -> float | None:
        if images is None:
            return None
        device = next(network.parameters()).device
        return round(accuracy(network, batches(images, preprocessing), device), 2)

    return {
        "images": None if images is None else len(images),
        "teacher_top1": top1(teacher),
        "top1": top1(student),
    }


def peak_memory_mb(device: torch.device) -> int:
    """Most memory that this process has held, in MB (of a million bytes); on CUDA, that of the device."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def sample_rows(samples: Samples, preprocessing: Preprocessing) -> tuple[Any, list[dict[str, Any]]]:
    """Sample images as bytes, and of each what was asked and what the teacher found."""
    columns = zip(
        samples.condition.label.tolist(),
        samples.found.tolist(),
        samples.condition.centre.tolist(),
        samples.centre.tolist(),
        strict=True,
    )
    rows = [
        {"label": label, "found": found, "centre": _rounded(centre), "realised": _rounded(realised)}
        for label, found, centre, realised in columns
    ]
    return to_bytes(samples.images.cpu(), preprocessing), rows


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]
