"""Conversion: the best candidate is selected and becomes what integer kernels compute."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from acq.quantization.integers import convert_to_integers
from acq.synthesis.dataset import DistillationBatch, augmented, teach
from acq.training.context import Context
from acq.training.distillation import StudentSettings
from acq.training.phase import StepResult
from acq.training.selection import FIRST, Selection, StudentQuality, majority_share, quality, warnings_about

_IMAGES, _PIXELS = 256, 1 << 21  # most images that judge a student, and most pixels in all


class Conversion:
    """The last phase, one step.

    Args:
        settings: The section ``student``, whose losses judge the candidates.
        context: What the phases share.
    """

    name = "conversion"
    steps = 1

    def __init__(self, settings: StudentSettings, context: Context) -> None:
        self.context = context
        self.learning_rate = settings.learning_rate
        self.weights = settings.losses.model_dump()
        self.batch = settings.batch_for(context.preprocessing.input_size)

    def step(self, number: int, rate: float) -> StepResult:
        """Select a candidate, convert it and measure the result."""
        context, batches = self.context, self._judging_batches()
        judging = [*batches, *self._scenes()]
        qualities = {name: self._quality_of(name, judging) for name in context.candidates}
        selected, *others = qualities
        for other in others:  # later candidates
            no_better = context.any_process(not qualities[other].is_better_than(qualities[selected]))
            selected = selected if no_better else other
        context.student.load_state_dict(context.candidates[selected])
        context.candidates = {}
        convert_to_integers(context.student)
        context.synchronize_student()
        context.selection = Selection(
            qualities, selected, self._quality(batches), majority_share(batches, context.teacher.output)
        )
        for text in warnings_about(context.selection, self.learning_rate, context.teacher.output):
            warnings.warn(text, stacklevel=2)
        return StepResult({})

    def state(self) -> dict[str, Any]:
        """Nothing: the one step is done or not."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""

    def _quality_of(self, candidate: str, batches: list[DistillationBatch]) -> StudentQuality:
        self.context.student.load_state_dict(self.context.candidates[candidate])
        return self._quality(batches)

    def _quality(self, batches: list[DistillationBatch]) -> StudentQuality:
        teacher = self.context.teacher
        return quality(self.context.student, teacher.features, batches, self.weights, teacher.output)

    def _judging_batches(self) -> list[DistillationBatch]:
        """Augmented copies of the first images, the same in every run.

        Layers were rounded on the images themselves, on which a calibrated student looks better than it is.
        """
        dataset, device, teacher = self.context.dataset, self.context.rng.device, self.context.teacher
        parts = torch.arange(self._count(), device=device).split(self.batch)  # type: ignore[no-untyped-call]
        rng = torch.Generator(device).manual_seed(0)
        return [augmented(dataset.batch.at(part), 1.0, rng, lambda images: teach(images, teacher)) for part in parts]

    def _scenes(self) -> list[DistillationBatch]:
        """As many new scenes, the same in every run; none where no candidate comes from scenes.

        Finished images alone would favour the students that were made on them.
        """
        context = self.context
        if FIRST not in context.candidates:
            return []
        scenes = context.scenes(self._count(), torch.Generator(context.rng.device).manual_seed(1))
        return [teach(part, context.teacher) for part in scenes.split(self.batch)]  # type: ignore[no-untyped-call]

    def _count(self) -> int:
        images = self.context.dataset.images
        return min(len(images), _IMAGES, max(2, _PIXELS // (images.shape[2] * images.shape[3])))
