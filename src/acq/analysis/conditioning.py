"""How closely images follow their conditions, measured on images of the generator and on finished images.

All figures are this project's definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.evaluate import evaluating
from acq.core.values import Condition, TeacherOutput
from acq.network.features import pooled
from acq.network.teacher import Teacher
from acq.quantization.student import Student
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.dataset import SyntheticDataset
from acq.synthesis.losses import relative_distance

_BATCH = 64  # images per forward pass


@dataclass(frozen=True)
class Conditioning:
    """How closely images follow their conditions.

    Attributes:
        correlation: Pearson's correlation of requested and realised centres, on the worse of the two axes. None where
            images are not asked for one answer each, or the network has no features with places.
        spread: Standard deviation of realised centres of one answer, mean over axes and answers; None as above.
        label_agreement: Share of images to which the teacher gives the requested answer, or of places; None where
            nothing is asked.
        eval_train_similarity: Mean cosine of the attention maps with running and with batch statistics; None without
            batch norms or features.
    """

    correlation: float | None
    spread: float | None
    label_agreement: float | None
    eval_train_similarity: float | None


@dataclass(frozen=True)
class Centres:
    """Labels [N], requested centres [N, 2] and realised centres [N, 2]; [N, 0] where the network has no features."""

    label: Tensor
    requested: Tensor
    realised: Tensor


@dataclass(frozen=True)
class GeneratorQuality:
    """Figures of a generator's own images.

    Attributes:
        conditioning: How closely they follow their conditions.
        pair_distance: Mean relative distance of the pooled features of two images with one condition.
        agreement: Percentage of images for which student and teacher name the same class, or of labels to which they
            say the same.
    """

    conditioning: Conditioning
    pair_distance: float
    agreement: float


def generator_quality(
    generator: nn.Module,
    teacher: Teacher,
    student: Student | Teacher,
    conditions: ConditionSampler,
    count: int,
    rng: torch.Generator,
) -> GeneratorQuality:
    """Measure a generator on at least ``count`` new images, made in eval mode."""
    columns: list[dict[str, Tensor]] = []
    with evaluating(generator), evaluating(student):
        for _ in range(0, count, _BATCH):
            condition = conditions.draw(_BATCH // 2, rng)
            images = generator(condition)
            output = teacher.read(images, condition.label)
            here, there = pooled(output.features).chunk(2)
            same = teacher.output.same(student.logits(images), output.logits)
            measured = _measured(teacher, images, condition, output)
            columns.append({**measured, "distance": relative_distance(here, there), "same": same})
    merged = _merged(columns)
    return GeneratorQuality(_conditioning(merged), merged["distance"].mean().item(), 100 * merged["same"].mean().item())


def dataset_conditioning(teacher: Teacher, dataset: SyntheticDataset) -> tuple[Conditioning, Centres]:
    """Measure the images of a dataset, and give the centre of each."""
    with torch.no_grad():
        merged = _merged(_batches(teacher, dataset))
    return _conditioning(merged), Centres(merged["label"], merged["requested"], merged["realised"])


def _batches(teacher: Teacher, dataset: SyntheticDataset) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(dataset), _BATCH):
        part = slice(first, first + _BATCH)
        images, condition = dataset.images[part], dataset.conditions(part)
        yield _measured(teacher, images, condition, teacher.read(images, condition.label))


def _measured(teacher: Teacher, images: Tensor, condition: Condition, output: TeacherOutput) -> dict[str, Tensor]:
    """What is kept of each image of a batch."""
    found = {
        "label": condition.label,
        "requested": condition.centre,
        "realised": output.centre,
        "came true": teacher.output.came_true(output.logits, condition.label),
    }
    if not (teacher.structure.normalised and output.attention.numel()):
        return found
    other = teacher.read(images, condition.label, batch_statistics=True)
    return {**found, "similarity": F.cosine_similarity(output.attention.flatten(1), other.attention.flatten(1))}


def _merged(columns: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = list(columns)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _conditioning(columns: dict[str, Tensor]) -> Conditioning:
    came_true, realised = columns["came true"], columns["realised"]
    has_centres = columns["label"].dim() == 1 and realised.shape[1] > 0
    return Conditioning(
        correlation=correlation(columns["requested"], realised).min().item() if has_centres else None,
        spread=spread(realised, columns["label"]) if has_centres else None,
        label_agreement=came_true.float().mean().item() if came_true.numel() else None,
        eval_train_similarity=columns["similarity"].mean().item() if "similarity" in columns else None,
    )


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each column: [N, D], [N, D] -> [D]; 0 where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-12)


def spread_per_class(centre: Tensor, label: Tensor) -> dict[int, float]:
    """Standard deviation of the centres of each class with at least two images, mean over both axes.

    Args:
        centre: [N, 2].
        label: [N].
    """
    classes = torch.bincount(label).gt(1).nonzero().flatten()
    return {int(k): centre[label == k].std(0).mean().item() for k in classes}


def spread(centre: Tensor, label: Tensor) -> float:
    """The mean of ``spread_per_class``; 0 where no class has two images."""
    found = list(spread_per_class(centre, label).values())
    return sum(found) / len(found) if found else 0.0
