"""Synthetic images with what the teacher said of them: filled, reused, and renewed a part at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acq.core.evaluate import evaluating
from acq.core.processes import ALONE, Processes
from acq.network.teacher import Teacher
from acq.synthesis.augmentation import augment
from acq.synthesis.condition import draw


@dataclass(frozen=True)
class DistillationBatch:
    """Images [N, C, H, W] and the teacher's logits [N, K] and last spatial features [N, D, h, w] for them."""

    images: Tensor
    logits: Tensor
    features: Tensor

    def at(self, index: Tensor) -> DistillationBatch:
        """The entries ``index`` [n], copied."""
        return DistillationBatch(self.images[index], self.logits[index], self.features[index])


@dataclass(frozen=True)
class SyntheticDataset:
    """A lesson of fixed size and the place of its oldest entry."""

    lesson: DistillationBatch
    oldest: int = 0

    def sample(self, count: int, rng: torch.Generator) -> DistillationBatch:
        """``count`` distinct entries, or all where there are fewer."""
        order = torch.randperm(len(self.lesson.images), generator=rng, device=rng.device)
        return self.lesson.at(order[:count])

    def renewed(self, fresh: DistillationBatch) -> SyntheticDataset:
        """The pool with its oldest entries overwritten in place by ``fresh`` ones (the last, if too many)."""
        size = len(self.lesson.images)
        count = min(len(fresh.images), size)
        where = (torch.arange(count, device=fresh.images.device) + self.oldest) % size
        for name in ("images", "logits", "features"):
            getattr(self.lesson, name)[where] = getattr(fresh, name)[-count:]
        return SyntheticDataset(self.lesson, (self.oldest + count) % size)


def augmented(
    lesson: DistillationBatch, teacher: Teacher, share: float, rng: torch.Generator, team: Processes = ALONE
) -> DistillationBatch:
    """The lesson with other views of the first ``share`` of its images (``acq.synthesis.augmentation``), read anew."""
    count = round(share * len(lesson.images))
    if not count:
        return lesson
    seen = read(augment(lesson.images[:count], rng), teacher, team=team)
    return DistillationBatch(
        torch.cat((seen.images, lesson.images[count:])),
        torch.cat((seen.logits, lesson.logits[count:])),
        torch.cat((seen.features, lesson.features[count:])),
    )


def read(images: Tensor, teacher: Teacher, batch: int = 128, team: Processes = ALONE) -> DistillationBatch:
    """Images and the teacher's reading of them, for which each of a ``team`` reads its share, if all have one."""
    team = team if team.serves(len(images)) else ALONE
    with torch.no_grad():
        readings = [teacher.read(part) for part in team.share(images).split(batch)]  # type: ignore[no-untyped-call]
    logits = torch.cat([reading.logits for reading in readings])
    features = torch.cat([reading.features for reading in readings])
    return DistillationBatch(images, team.gather(logits, len(images)), team.gather(features, len(images)))


def synthesise(
    generator: nn.Module,
    teacher: Teacher,
    count: int,
    *,
    noise_dim: int,
    spread: float,
    rng: torch.Generator,
    batch: int = 128,
    team: Processes = ALONE,
) -> DistillationBatch:
    """``count`` fresh images from the generator as it stands (in eval mode) and the teacher's reading of them."""
    parts = []
    with evaluating(generator):
        for start in range(0, count, batch):
            pairs = (min(batch, count - start) + 1) // 2
            parts.append(generator(draw(pairs, noise_dim=noise_dim, classes=teacher.classes, spread=spread, rng=rng)))
    return read(torch.cat(parts)[:count], teacher, batch, team)
