"""The two observations of ACQ's abstract as figures: attention within a class, and in evaluation and training mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from runs import Row
from torch import Tensor
from torch.nn import functional as F

from acq.analysis.conditioning import spread
from acq.core.values import Condition, GeneratorBatch, Preprocessing
from acq.network.teacher import Teacher
from acq.synthesis.losses import LOSSES

FIGURES = {
    "spread": "spread of centres",
    "class_similarity": "similarity within a class",
    "mode_similarity": "similarity of both modes",
    "mismatch_eval": "mismatch of statistics, evaluation mode",
    "mismatch_train": "mismatch, training mode",
}
_BATCH = 64


def attention_figures(teacher: Teacher, images: Tensor, label: Tensor, known: Preprocessing) -> Row:
    """Where a network looks on images [N, C, H, W] of classes ``label`` [N].

    Returns:
        ``spread`` of centres and ``class_similarity`` (mean cosine of two maps) within a class; ``mode_similarity``,
        the mean cosine of an image's maps with running and with batch statistics; ``mismatch_eval`` and
        ``mismatch_train``, the loss ``statistics`` of batches of 64 in these modes. Maps are those of the class.
    """
    batches = list(_read(teacher, images, label, known))
    maps = torch.cat([batch.eval_output.attention for batch in batches])
    centres = torch.cat([batch.eval_output.centre for batch in batches])
    modes = [_cosine(batch.eval_output.attention, _train(batch).eval_output.attention) for batch in batches]
    statistics = LOSSES["statistics"]
    return {
        "spread": spread(centres, label),
        "class_similarity": class_similarity(maps, label),
        "mode_similarity": torch.cat(modes).mean().item(),
        "mismatch_eval": torch.stack([statistics(batch) for batch in batches]).mean().item(),
        "mismatch_train": torch.stack([statistics(_train(batch)) for batch in batches]).mean().item(),
    }


def class_similarity(maps: Tensor, label: Tensor) -> float:
    """Mean cosine of the maps [N, H, W] of two different images of one class, mean over classes with two images.

    The sum of all cosines of a class is the squared length of the sum of its unit vectors.
    """
    unit = F.normalize(maps.flatten(1))
    found = []
    for k in torch.bincount(label).gt(1).nonzero().flatten():
        rows = unit[label == k]
        count = len(rows)
        found.append((rows.sum(0).square().sum() - count) / (count * (count - 1)))
    return torch.stack(found).mean().item()


def _read(teacher: Teacher, images: Tensor, label: Tensor, known: Preprocessing) -> Iterator[GeneratorBatch]:
    for first in range(0, len(images), _BATCH):
        part = slice(first, first + _BATCH)
        rows, classes = images[part], label[part]
        with torch.no_grad():
            evaluated = teacher.read(rows, classes, moments=True)
            trained = teacher.read(rows, classes, batch_statistics=True, moments=True)
        condition = Condition(rows.new_zeros(len(rows), 0), classes, evaluated.centre)
        yield GeneratorBatch(condition, rows, evaluated, trained, teacher.stored_moments, teacher.output, known)


def _train(batch: GeneratorBatch) -> GeneratorBatch:
    """The batch as the losses see it in training mode."""
    assert batch.train_output is not None
    return replace(batch, eval_output=batch.train_output)


def _cosine(maps: Tensor, others: Tensor) -> Tensor:
    return F.cosine_similarity(maps.flatten(1), others.flatten(1))
