"""The synthetic dataset: images, what was requested of each, and the teacher's outputs for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acq.core.evaluate import evaluating
from acq.core.values import Condition
from acq.network.teacher import Teacher
from acq.synthesis.augmentation import augment
from acq.synthesis.condition import ConditionSampler

_BATCH = 128  # images per forward pass


@dataclass(frozen=True)
class DistillationBatch:
    """Images [N, C, H, W] with the teacher's logits [N, K] and features (``acq.core.values.TeacherOutput``)."""

    images: Tensor
    logits: Tensor
    features: Tensor

    def at(self, index: Tensor) -> DistillationBatch:
        """A copy of the entries ``index`` [n]."""
        return DistillationBatch(self.images[index], self.logits[index], self.features[index])


@dataclass(frozen=True)
class SyntheticDataset:
    """A fixed number of synthetic images and the position of the oldest one.

    Attributes:
        batch: All images with the teacher's outputs.
        label: The requested answers, [N].
        centre: The requested attention centres, [N, 2].
        oldest: Index of the entry that is replaced next.
    """

    batch: DistillationBatch
    label: Tensor
    centre: Tensor
    oldest: int = 0

    def __len__(self) -> int:
        return len(self.label)

    @property
    def images(self) -> Tensor:
        """All images, [N, C, H, W]."""
        return self.batch.images

    def sample(self, count: int, rng: torch.Generator) -> DistillationBatch:
        """Draw ``count`` distinct entries; all entries where there are fewer."""
        order = torch.randperm(len(self), generator=rng, device=rng.device)
        return self.batch.at(order[:count])

    def conditions(self, index: slice) -> Condition:
        """What was requested of some entries, without noise."""
        label = self.label[index]
        return Condition(self.centre.new_empty(len(label), 0), label, self.centre[index])

    def renewed(self, fresh: SyntheticDataset) -> SyntheticDataset:
        """A copy whose oldest entries are replaced by ``fresh`` ones (by the last of them, if there are too many)."""
        count = min(len(fresh), len(self))
        where = (torch.arange(count, device=fresh.label.device) + self.oldest) % len(self)
        columns = [old.clone() for old in _columns(self)]
        for old, new in zip(columns, _columns(fresh), strict=True):
            old[where] = new[-count:]
        images, logits, features, label, centre = columns
        batch = DistillationBatch(images, logits, features)
        return SyntheticDataset(batch, label, centre, (self.oldest + count) % len(self))


@dataclass(frozen=True)
class Examples:
    """Some images on their way to the dataset, normalised [n, C, H, W], and what was requested of them.

    ``proposal`` is None where there is no generator.
    """

    proposal: Tensor | None
    start: Tensor
    finished: Tensor
    label: Tensor
    centre: Tensor


def teach(images: Tensor, teacher: Teacher) -> DistillationBatch:
    """Images [N, C, H, W] with the teacher's outputs, without gradients."""
    with torch.no_grad():
        outputs = [teacher.read(part) for part in images.split(_BATCH)]  # type: ignore[no-untyped-call]
    logits = torch.cat([output.logits for output in outputs])
    return DistillationBatch(images, logits, torch.cat([output.features for output in outputs]))


def augmented(
    batch: DistillationBatch, share: float, rng: torch.Generator, teacher: Callable[[Tensor], DistillationBatch]
) -> DistillationBatch:
    """Replace the first ``share`` of a batch with augmented images (``acq.synthesis.augmentation``).

    Args:
        batch: Entries of the dataset.
        share: Part of the batch, 0 to 1.
        rng: Random state of the augmentation.
        teacher: Computes the teacher's outputs for the augmented images.
    """
    count = round(share * len(batch.images))
    if not count:
        return batch
    changed = teacher(augment(batch.images[:count], rng))
    return DistillationBatch(
        torch.cat((changed.images, batch.images[count:])),
        torch.cat((changed.logits, batch.logits[count:])),
        torch.cat((changed.features, batch.features[count:])),
    )


def generate(
    generator: nn.Module, conditions: ConditionSampler, count: int, rng: torch.Generator, batch: int = _BATCH
) -> tuple[Tensor, Condition]:
    """Draw ``count`` conditions and let the generator, in eval mode, make an image for each.

    Returns:
        The images [count, C, H, W] and their conditions.
    """
    parts = list(_generated(generator, conditions, count, rng, batch))
    images = torch.cat([images for images, _ in parts])[:count]
    noise, label, centre = (
        torch.cat([getattr(condition, name) for _, condition in parts])[:count] for name in ("noise", "label", "centre")
    )
    return images, Condition(noise, label, centre)


def _generated(
    generator: nn.Module, conditions: ConditionSampler, count: int, rng: torch.Generator, batch: int
) -> Iterator[tuple[Tensor, Condition]]:
    with evaluating(generator):
        for start in range(0, count, batch):
            condition = conditions.draw((min(batch, count - start) + 1) // 2, rng)
            yield generator(condition), condition


def _columns(dataset: SyntheticDataset) -> tuple[Tensor, ...]:
    batch = dataset.batch
    return batch.images, batch.logits, batch.features, dataset.label, dataset.centre
