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
from acq.training.selection import Selection, StudentQuality, majority_share, quality, warnings_about

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
        qualities = {name: self._quality_of(name, batches) for name in reversed(context.candidates)}
        selected, *others = qualities
        for other in others:  # earlier candidates
            worse = context.any_process(qualities[selected].is_worse_than(qualities[other]))
            selected = other if worse else selected
        context.student.load_state_dict(context.candidates[selected])
        context.candidates = {}
        convert_to_integers(context.student)
        context.synchronize_student()
        ordered = {name: qualities[name] for name in reversed(qualities)}
        context.selection = Selection(
            ordered, selected, self._quality(batches), majority_share(batches, context.teacher.output)
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
        area = dataset.images.shape[2] * dataset.images.shape[3]
        count = min(len(dataset), _IMAGES, max(2, _PIXELS // area))
        parts = torch.arange(count, device=device).split(self.batch)  # type: ignore[no-untyped-call]
        rng = torch.Generator(device).manual_seed(0)
        return [augmented(dataset.batch.at(part), 1.0, rng, lambda images: teach(images, teacher)) for part in parts]
