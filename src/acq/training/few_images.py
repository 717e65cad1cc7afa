"""A few finished images: they calibrate a second student, and show whether the run has anything to gain from more."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from acq.synthesis.augmentation import augment
from acq.training.calibration import CalibrationSettings, keep_untrained
from acq.training.context import Context
from acq.training.distillation import StudentSettings
from acq.training.images import ImageRefinement, ImageSettings
from acq.training.judging import Judge
from acq.training.phase import StepResult
from acq.training.schedule import images_that_fit
from acq.training.selection import CALIBRATED, over_kinds

_USUAL_COUNT, _PIXELS = 64, 3 << 18  # most images, and most pixels in all
_STEPS = 40  # of refinement, at most
_OF_VALUES = 0.2  # of the threshold in nats, where values are returned: 0.05 of their squares is a large error


def good_enough(divergence: float, enough: float) -> str:
    """Why a run stops at a student with this mean divergence from the teacher."""
    return f"the student's mean divergence from the teacher is {divergence:.2g}, and at most {enough:g} is enough"


class FewImages:
    """The phase after the first student. Where a student is good enough, the run ends with it and these images.

    Otherwise it leaves nothing behind but the first student, and later phases draw what they draw without this one.
    The images begin as scenes, without the generator.

    Args:
        images: The section ``images``.
        calibration: The section ``calibration``.
        student: The section ``student``, whose losses judge the students.
        context: What the phases share; it holds the first student.
    """

    name, section = "few", "images"

    def __init__(
        self, images: ImageSettings, calibration: CalibrationSettings, student: StudentSettings, context: Context
    ) -> None:
        size, pairs = context.preprocessing.input_size, 2 * context.processes.size
        self.settings, self.context = calibration, context
        has_values = any(part.kind == "values" for part in context.teacher.output.parts)
        self.enough = calibration.enough * (_OF_VALUES if has_values else 1.0)
        self.judge = Judge(student.batch_for(size), student.losses.model_dump(), context)
        count = max(pairs, images_that_fit(_USUAL_COUNT, size, pixels=_PIXELS, least=16))
        few = {"count": count, "batch": count, "steps": min(_STEPS, images.steps), "scene": 1.0}
        self.refinement = ImageRefinement(images.model_copy(update=few), context)
        self.steps = self.refinement.steps
        self._rng_before = context.rng.get_state()  # the first student draws nothing of the run

    def step(self, number: int, rate: float) -> StepResult:
        """Refine the images by one step. The last one calibrates a student on them and judges."""
        result = self.refinement.step(number, rate)
        return StepResult(result.losses, enough=self._verdict()) if number + 1 == self.steps else result

    def state(self) -> dict[str, Any]:
        """Images that are being refined."""
        return self.refinement.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.refinement.restore(state)

    def preview(self, count: int) -> Tensor | None:
        """The first images that are being refined, normalised."""
        return self.refinement.preview(count)

    def _verdict(self) -> str | None:
        """Why the run needs no more; None where it does, and the images and their student are dropped.

        The images, their augmented copies and as many scenes calibrate the student. The better student is judged by the
        plain mean over kinds of images, because one that is right on one kind alone is not enough.
        """
        context = self.context
        before = copy.deepcopy(context.student.state_dict())
        images = context.dataset.images
        scenes = context.scenes(2 * len(images), context.rng)
        mixture = torch.cat((images, augment(images, context.rng), scenes))
        keep_untrained(CALIBRATED, mixture, self.settings, context)
        found = self.judge.by_kind(*self.judge.kinds())
        context.student.load_state_dict(before)
        best = self.judge.best({name: over_kinds(each) for name, each in found.items()})
        divergence = statistics.mean(each.divergence for each in found[best])
        if not context.any_process(not divergence <= self.enough):
            return good_enough(divergence, self.enough)
        del context.candidates[CALIBRATED]
        context.drop_dataset()
        context.rng.set_state(self._rng_before)
        return None
