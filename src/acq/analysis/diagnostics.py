"""What the report shows beyond the summary, as JSON values: layers, statistics, centres and attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx

from acq.analysis.conditioning import Centres, spread_per_class
from acq.analysis.sensitivity import sensitivities
from acq.core.values import Moments
from acq.network.names import name_of
from acq.network.teacher import Teacher
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.node_plan import Plan
from acq.synthesis.losses import unit_variance

_IMAGES, _PIXELS, _PIXELS_AT_ONCE = 256, 1 << 21, 1 << 18


def diagnose(graph: fx.GraphModule, plan: Plan, teacher: Teacher, images: Tensor, centres: Centres) -> dict[str, Any]:
    """Sensitivity of each layer, batch-norm statistics and centres.

    The sensitivities are those of a calibrated student, neither rounded layer by layer nor trained: what quantizing
    costs the network itself.

    Args:
        graph: The traced network.
        plan: Of the student.
        teacher: The network as a teacher, on the device of the images.
        images: Finished images [N, C, H, W]; at most 256, or 2 megapixels in all, are used.
        centres: Of the finished images.
    """
    area = images.shape[2] * images.shape[3]
    few = images[: max(2, min(_IMAGES, _PIXELS // area))]
    parts = few.split(max(2, _PIXELS_AT_ONCE // area))  # type: ignore[no-untyped-call]
    student = build(graph, plan).to(images.device)
    calibrate(student, parts)
    rows, spreads = [], {}
    if teacher.output.whole is not None and teacher.structure.features is not None:
        rows = list(zip(*(value.tolist() for value in vars(centres).values()), strict=True))
        spreads = spread_per_class(centres.realised, centres.label)
    return {
        "images": len(few),
        "layers": [asdict(layer) for layer in sensitivities(student, parts)],
        "statistics": statistics(teacher, parts),
        "centres": [
            {"label": label, "requested": rounded(requested), "realised": rounded(realised)}
            for label, requested, realised in rows
        ],
        "spread": {str(k): round(value, 4) for k, value in spreads.items()},
    }


@torch.no_grad()
def statistics(teacher: Teacher, batches: Iterable[Tensor]) -> list[dict[str, Any]]:
    """How far the input of every batch normalization is from the stored mean and standard deviation; empty without any.

    ``mean`` and ``deviation`` are root mean squares over channels, in stored standard deviations (this project's
    definition).

    Args:
        teacher: The frozen network.
        batches: Images [n, C, H, W].
    """
    if not teacher.structure.normalised:
        return []
    count, sums = 0, [torch.zeros(2, len(stored.mean), dtype=torch.float64) for stored in teacher.stored_moments]
    for batch in batches:
        for total, moments in zip(sums, teacher.read(batch, moments=True).moments, strict=True):
            mean, var = moments.mean.double().cpu(), moments.var.double().cpu()
            total += len(batch) * torch.stack([mean, var + mean.square()])
        count += len(batch)
    rows = zip(teacher.structure.norms, sums, teacher.stored_moments, strict=True)
    return [{"layer": name_of(norm), **_distances(total / count, stored)} for norm, total, stored in rows]


def rounded(values: Sequence[float]) -> list[float]:
    """Numbers as they are written to JSON."""
    return [round(value, 3) for value in values]


def _distances(found: Tensor, stored: Moments) -> dict[str, float]:
    mean, square = found
    expected, var = stored.mean.double().cpu(), stored.var.double().cpu()
    unit = unit_variance(var).sqrt()
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    apart = {"mean": (mean - expected) / unit, "deviation": (deviation - var.sqrt()) / unit}
    return {name: round(value.square().mean().sqrt().item(), 4) for name, value in apart.items()}
