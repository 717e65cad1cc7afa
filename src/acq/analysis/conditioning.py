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
from acq.core.values import Condition, GeneratorBatch
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
        correlation: Pearson's correlation of requested and realised centres, on the worse of the two axes.
        spread: Standard deviation of realised centres of one answer, mean over axes and answers.
        label_agreement: Share of images to which the teacher gives the requested answer.
        eval_train_similarity: Mean cosine of the attention maps with running and with batch statistics.
    """

    correlation: float
    spread: float
    label_agreement: float
    eval_train_similarity: float


@dataclass(frozen=True)
class Centres:
    """Labels [N], requested centres [N, 2] and realised centres [N, 2]."""

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
            batch = _read(teacher, generator(condition), condition)
            here, there = batch.eval_output.features.mean((2, 3)).chunk(2)
            same = teacher.output.same(student.logits(batch.images), batch.eval_output.logits)
            columns.append({**_measured(batch), "distance": relative_distance(here, there), "same": same})
    merged = _merged(columns)
    return GeneratorQuality(_conditioning(merged), merged["distance"].mean().item(), 100 * merged["same"].mean().item())


def dataset_conditioning(teacher: Teacher, dataset: SyntheticDataset) -> tuple[Conditioning, Centres]:
    """Measure the images of a dataset, and give the centre of each."""
    merged = _merged(_measured(batch) for batch in _batches(teacher, dataset))
    return _conditioning(merged), Centres(merged["label"], merged["requested"], merged["realised"])


def _batches(teacher: Teacher, dataset: SyntheticDataset) -> Iterator[GeneratorBatch]:
    with torch.no_grad():
        for first in range(0, len(dataset), _BATCH):
            part = slice(first, first + _BATCH)
            yield _read(teacher, dataset.images[part], dataset.conditions(part))


def _read(teacher: Teacher, images: Tensor, condition: Condition) -> GeneratorBatch:
    eval_output = teacher.read(images, condition.label)
    train_output = teacher.read(images, condition.label, batch_statistics=True)
    return GeneratorBatch(condition, images, eval_output, train_output, teacher.stored_moments, teacher.output)


def _measured(batch: GeneratorBatch) -> dict[str, Tensor]:
    """What is kept of each image of a batch."""
    train_output = batch.eval_output if batch.train_output is None else batch.train_output
    maps = batch.eval_output.attention.flatten(1), train_output.attention.flatten(1)
    return {
        "label": batch.condition.label,
        "requested": batch.condition.centre,
        "realised": batch.eval_output.centre,
        "came true": batch.output.came_true(batch.eval_output.logits, batch.condition.label),
        "similarity": F.cosine_similarity(*maps),
    }


def _merged(columns: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = list(columns)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _conditioning(columns: dict[str, Tensor]) -> Conditioning:
    return Conditioning(
        correlation=correlation(columns["requested"], columns["realised"]).min().item(),
        spread=spread(columns["realised"], columns["label"]),
        label_agreement=columns["came true"].float().mean().item(),
        eval_train_similarity=columns["similarity"].mean().item(),
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
