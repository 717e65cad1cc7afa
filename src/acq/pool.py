"""Synthetic images with what the teacher said of them: filled, reused, and renewed a part at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acq.condition import draw
from acq.evaluate import evaluating
from acq.teacher import Teacher


@dataclass(frozen=True)
class Lesson:
    """Images [N, C, H, W] and the teacher's logits [N, K] and last spatial features [N, D, h, w] for them."""

    images: Tensor
    logits: Tensor
    features: Tensor

    def at(self, index: Tensor) -> Lesson:
        """The entries ``index`` [n], copied."""
        return Lesson(self.images[index], self.logits[index], self.features[index])


@dataclass(frozen=True)
class Pool:
    """A lesson of fixed size and the place of its oldest entry."""

    lesson: Lesson
    oldest: int = 0

    def sample(self, count: int, rng: torch.Generator) -> Lesson:
        """``count`` distinct entries, or all where there are fewer."""
        order = torch.randperm(len(self.lesson.images), generator=rng, device=rng.device)
        return self.lesson.at(order[:count])

    def renewed(self, fresh: Lesson) -> Pool:
        """The pool with its oldest entries overwritten in place by ``fresh`` ones (the last, if too many)."""
        size = len(self.lesson.images)
        count = min(len(fresh.images), size)
        where = (torch.arange(count, device=fresh.images.device) + self.oldest) % size
        for name in ("images", "logits", "features"):
            getattr(self.lesson, name)[where] = getattr(fresh, name)[-count:]
        return Pool(self.lesson, (self.oldest + count) % size)


def mixed(lesson: Lesson, teacher: Teacher, share: float, rng: torch.Generator) -> Lesson:
    """The lesson with the first ``share`` of its images blended with other ones of it, and read anew.

    Image ``i`` becomes ``(1 - b) a_i + b a_j`` with b uniform in [0, 1/2] and j the place before it: images between
    classes, where a student that only saw sure ones goes its own way (mixup, Zhang et al., arXiv 1710.09412, with
    the teacher's answer in place of mixed labels).
    """
    count = round(share * len(lesson.images))
    if not count:
        return lesson
    blend = torch.rand(count, 1, 1, 1, generator=rng, device=rng.device) / 2
    images = torch.lerp(lesson.images[:count], lesson.images.roll(1, 0)[:count], blend)
    with torch.no_grad():
        reading = teacher.read(images)
    return Lesson(
        torch.cat((images, lesson.images[count:])),
        torch.cat((reading.logits, lesson.logits[count:])),
        torch.cat((reading.features, lesson.features[count:])),
    )


def synthesise(
    generator: nn.Module,
    teacher: Teacher,
    count: int,
    *,
    noise_dim: int,
    spread: float,
    rng: torch.Generator,
    batch: int = 128,
) -> Lesson:
    """``count`` fresh images from the generator as it stands (in eval mode) and the teacher's reading of them."""
    parts = []
    with evaluating(generator):
        for start in range(0, count, batch):
            pairs = (min(batch, count - start) + 1) // 2
            condition = draw(pairs, noise_dim=noise_dim, classes=teacher.classes, spread=spread, rng=rng)
            images = generator(condition)
            reading = teacher.read(images)
            parts.append(Lesson(images, reading.logits, reading.features))
    return Lesson(
        torch.cat([part.images for part in parts])[:count],
        torch.cat([part.logits for part in parts])[:count],
        torch.cat([part.features for part in parts])[:count],
    )
