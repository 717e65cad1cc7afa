"""The images that judge students, and the quality of a student on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acq.synthesis.dataset import DistillationBatch, augmented, teach
from acq.training.context import Context
from acq.training.selection import FIRST, StudentQuality, over_kinds, quality

Batches = list[DistillationBatch]
_IMAGES, _PIXELS = 256, 1 << 21  # most images of a kind that judge a student, and most pixels in all


class Judge:
    """Measures students on images that are the same in every run of a dataset. It draws no number of the run.

    Args:
        batch: Images per forward pass.
        weights: Of the student's losses, by name.
        context: What the phases share.
    """

    def __init__(self, batch: int, weights: Mapping[str, float], context: Context) -> None:
        self.batch, self.weights, self.context = batch, weights, context

    def quality(self, *kinds: Batches) -> StudentQuality:
        """The quality of the present student on images of each kind."""
        teacher, student = self.context.teacher, self.context.student
        return over_kinds([quality(student, teacher.features, part, self.weights, teacher.output) for part in kinds])

    def qualities(self, *kinds: Batches) -> dict[str, StudentQuality]:
        """The quality of each candidate over all kinds. The student changes."""
        return {name: over_kinds(found) for name, found in self.by_kind(*kinds).items()}

    def by_kind(self, *kinds: Batches) -> dict[str, list[StudentQuality]]:
        """The quality of each candidate on each kind. The student changes."""
        found = {}
        for name, candidate in self.context.candidates.items():
            self.context.student.load_state_dict(candidate)
            found[name] = [self.quality(kind) for kind in kinds]
        return found

    def best(self, qualities: Mapping[str, StudentQuality]) -> str:
        """The name of the best student: a later one must be better than those before, in every process."""
        selected, *others = qualities
        for other in others:
            no_better = self.context.any_process(not qualities[other].is_better_than(qualities[selected]))
            selected = selected if no_better else other
        return selected

    def kinds(self) -> list[Batches]:
        """What judges candidates: augmented images of the dataset, and as many scenes if a candidate comes from scenes.

        Finished images alone would favour the students that were made on them.
        """
        return [self.images(), *([self.scenes()] if FIRST in self.context.candidates else [])]

    def images(self) -> Batches:
        """Augmented copies of the images of the dataset, several of each where there are few.

        Layers were rounded on the images themselves, on which a calibrated student looks better than it is.
        """
        dataset, device = self.context.dataset, self.context.rng.device
        rows = torch.arange(self._count(), device=device) % len(dataset.images)
        rng = torch.Generator(device).manual_seed(0)
        parts: tuple[Tensor, ...] = rows.split(self.batch)  # type: ignore[no-untyped-call]
        return [augmented(dataset.batch.at(part), 1.0, rng, self._taught) for part in parts]

    def scenes(self) -> Batches:
        """As many new scenes."""
        scenes = self.context.scenes(self._count(), torch.Generator(self.context.rng.device).manual_seed(1))
        return [self._taught(part) for part in scenes.split(self.batch)]  # type: ignore[no-untyped-call]

    def _taught(self, images: Tensor) -> DistillationBatch:
        return teach(images, self.context.teacher)

    def _count(self) -> int:
        _, height, width = self.context.preprocessing.input_size
        return min(_IMAGES, max(2, _PIXELS // (height * width)))
