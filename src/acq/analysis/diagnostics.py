"""What a run's report shows beyond its summary, as JSON values: layers one by one, statistics, centres, attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx

from acq.analysis.conditioning import Review
from acq.analysis.sensitivity import sensitivities
from acq.core.values import Moments
from acq.network.teacher import Teacher
from acq.quantization.calibration import calibrate
from acq.quantization.plan import Plan
from acq.quantization.student import build
from acq.synthesis.losses import unit_variance

_MOST_IMAGES, _PIXELS, _AT_ONCE = 256, 1 << 21, 1 << 18


def insight(graph: fx.GraphModule, layout: Plan, teacher: Teacher, images: Tensor, seen: Review) -> dict[str, Any]:
    """Layers quantized alone and batch-norm statistics on some of ``images`` [N, C, H, W], and what a review saw.

    Layers are those of a student as ``layout`` plans it, calibrated and neither rounded as a whole nor trained: what
    the network itself would lose. At most 256 images or two megapixels are used.
    """
    area = images.shape[2] * images.shape[3]
    few = images[: max(2, min(_MOST_IMAGES, _PIXELS // area))]
    parts = few.split(max(2, _AT_ONCE // area))  # type: ignore[no-untyped-call]
    student = build(graph, layout).to(images.device)
    calibrate(student, parts)
    found = sensitivities(student, parts)
    return {
        "images": len(few),
        "layers": [asdict(layer) for layer in found],
        "statistics": statistics(teacher, parts),
        "centres": [
            {"label": label, "requested": _short(asked), "realised": _short(came)}
            for label, asked, came in zip(*(values.tolist() for values in vars(seen.centres).values()), strict=True)
        ],
        "attention": [[_short(line) for line in one] for one in _relative(seen.samples.attention).tolist()],
    }


@torch.no_grad()
def statistics(teacher: Teacher, batches: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Of every batch normalization how far its input's mean and deviation are from the stored ones.

    ``mean`` and ``deviation`` are root mean squares over channels, in stored deviations (this project's definition).
    """
    count, sums = 0, [torch.zeros(2, len(stored.mean), dtype=torch.float64) for stored in teacher.stored_moments]
    for batch in batches:
        for total, moments in zip(sums, teacher.read(batch, moments=True).moments, strict=True):
            mean, var = moments.mean.double().cpu(), moments.var.double().cpu()
            total += len(batch) * torch.stack([mean, var + mean.square()])
        count += len(batch)
    pairs = zip(teacher.structure.norms, sums, teacher.stored_moments, strict=True)
    return [{"layer": name, **_distances(total / count, stored)} for name, total, stored in pairs]


def _distances(found: Tensor, stored: Moments) -> dict[str, float]:
    mean, square = found
    expected, var = stored.mean.double().cpu(), stored.var.double().cpu()
    unit = unit_variance(var).sqrt()
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    apart = {"mean": (mean - expected) / unit, "deviation": (deviation - var.sqrt()) / unit}
    return {name: round(value.square().mean().sqrt().item(), 4) for name, value in apart.items()}


def _relative(maps: Tensor) -> Tensor:
    """Each map's greatest value is one."""
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _short(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]
