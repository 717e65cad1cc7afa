"""Look at what was trained, on conditions nobody trained on: does the condition steer, does the student agree?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.evaluate import evaluating
from acq.core.values import Condition, GeneratorBatch
from acq.network.teacher import Teacher
from acq.synthesis.condition import draw


@dataclass(frozen=True)
class Control:
    """How far images follow their conditions (all this project's definitions).

    ``correlation`` is Pearson's between requested and realised centres on the worse of the two axes, ``spread`` the
    standard deviation of realised centres within a class (mean over axes and classes), ``label_agreement`` the
    share of images that the teacher labels as requested, ``eval_train_similarity`` the mean cosine of the
    attention maps with running and with batch statistics, and ``pair_distance`` how unlike two images of one
    condition are: mean of |a - b|^2 / (|a|^2 + |b|^2) over their pooled features.
    """

    correlation: float
    spread: float
    label_agreement: float
    eval_train_similarity: float
    pair_distance: float


@dataclass(frozen=True)
class Samples:
    """Some images [N, C, H, W], what was asked of them, the class found [N], and the attention [N, H, W] and its
    centre [N, 2] that came of it."""

    images: Tensor
    condition: Condition
    found: Tensor
    attention: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Centres:
    """Of each image its label [N], and the requested and the realised centre [N, 2]."""

    label: Tensor
    requested: Tensor
    realised: Tensor


@dataclass(frozen=True)
class Review:
    """The figures of one review; ``agreement`` is the percentage of images on which student and teacher choose
    the same class (None without a student)."""

    control: Control
    agreement: float | None
    samples: Samples
    centres: Centres


def fresh_steps(
    generator: nn.Module,
    teacher: Teacher,
    count: int,
    *,
    noise_dim: int,
    spread: float,
    rng: torch.Generator,
    batch: int = 64,
) -> Iterator[GeneratorBatch]:
    """Batches of at least ``count`` fresh images in all, made in eval mode and read with both statistics."""
    with evaluating(generator):
        for _ in range(0, count, batch):
            condition = draw(batch // 2, noise_dim=noise_dim, classes=teacher.classes, spread=spread, rng=rng)
            images = generator(condition)
            eval_output = teacher.read(images, condition.label)
            train_output = teacher.read(images, condition.label, batch_statistics=True)
            yield GeneratorBatch(condition, images, eval_output, train_output, teacher.stored_moments)


def review(steps: Iterator[GeneratorBatch], student: nn.Module | None = None) -> Review:
    """One pass over fresh steps; memory is that of one batch and a few numbers an image."""
    columns: dict[str, list[Tensor]] = {}
    first: Samples | None = None
    for step in steps:
        for name, value in _measured(step, student).items():
            columns.setdefault(name, []).append(value)
        if first is None:
            found = step.eval_output
            first = Samples(step.images, step.condition, found.logits.argmax(1), found.attention, found.centre)
    if first is None:
        raise ValueError("a review needs at least one step")
    seen = {name: torch.cat(values) for name, values in columns.items()}
    figures = Control(
        correlation=_correlation(seen["requested"], seen["realised"]).min().item(),
        spread=_spread(seen["realised"], seen["label"]),
        label_agreement=(seen["found"] == seen["label"]).float().mean().item(),
        eval_train_similarity=seen["similarity"].mean().item(),
        pair_distance=seen["apart"].mean().item(),
    )
    same = (seen["student"] == seen["found"]).float().mean().item() if student is not None else None
    centres = Centres(seen["label"], seen["requested"], seen["realised"])
    return Review(figures, None if same is None else 100 * same, first, centres)


def _measured(step: GeneratorBatch, student: nn.Module | None) -> dict[str, Tensor]:
    """What is kept of each image of a batch."""
    assert step.train_output is not None
    maps = step.eval_output.attention.flatten(1), step.train_output.attention.flatten(1)
    here, there = step.eval_output.features.mean((2, 3)).chunk(2)
    energy = (here.square() + there.square()).sum(1).clamp_min(1e-12)
    measured = {
        "requested": step.condition.centre,
        "realised": step.eval_output.centre,
        "label": step.condition.label,
        "found": step.eval_output.logits.argmax(1),
        "similarity": F.cosine_similarity(*maps),
        "apart": (here - there).square().sum(1) / energy,
    }
    if student is not None:
        with evaluating(student):
            measured["student"] = student(step.images).argmax(1)
    return measured


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each column: [N, D], [N, D] -> [D]; zero where a column does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-12)


def _spread(centre: Tensor, label: Tensor) -> float:
    """Mean standard deviation of the centres of one class, over axes and the classes with at least two images."""
    counts = torch.bincount(label)
    deviations = [centre[label == k].std(0).mean() for k in counts.gt(1).nonzero().flatten()]
    return torch.stack(deviations).mean().item() if deviations else 0.0
