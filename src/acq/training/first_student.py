"""The first student: calibrated and rounded on scenes, before any image is made. No run ends worse than it."""

from __future__ import annotations

import copy

import torch

from acq.quantization.formats import WIDE_BITS
from acq.training.calibration import CalibrationSettings, keep_untrained
from acq.training.context import Context
from acq.training.phase import OneStep, StepResult
from acq.training.schedule import PIXELS_KEPT, images_that_fit
from acq.training.selection import FIRST

_USUAL_COUNT = 512
_QUICK_PIXELS = 3 << 20  # most pixels in all where the student may end the run: more do not help wide weights
_STREAM = 2  # added to the seed of the run, so that later phases draw what they draw without this one


class FirstStudent(OneStep):
    """The first phase, one step. It keeps a candidate, and leaves the student and the run's random state as they were.

    Args:
        settings: The section ``calibration``.
        weight_bits: Of the student.
        context: What the phases share.
    """

    name, section = "first", "calibration"

    def __init__(self, settings: CalibrationSettings, weight_bits: int, context: Context) -> None:
        self.settings, self.context = settings, context
        quick = settings.enough and weight_bits >= WIDE_BITS
        size, pixels = context.preprocessing.input_size, _QUICK_PIXELS if quick else PIXELS_KEPT
        self.count = min(settings.images_for(size), images_that_fit(_USUAL_COUNT, size, pixels=pixels, least=16))

    def step(self, number: int, rate: float) -> StepResult:
        """Quantize the student on scenes, keep it as a candidate, and put the student back."""
        context, before = self.context, copy.deepcopy(self.context.student.state_dict())
        rng = torch.Generator(context.rng.device).manual_seed(context.rng.initial_seed() + _STREAM)
        keep_untrained(FIRST, context.scenes(self.count, rng), self.settings, context)
        context.student.load_state_dict(before)
        return StepResult({})
