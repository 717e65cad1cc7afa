"""Conversion: the best candidate is selected and becomes what integer kernels compute."""

from __future__ import annotations

import warnings

from acq.quantization.integers import convert_to_integers
from acq.training.context import Context
from acq.training.distillation import StudentSettings
from acq.training.judging import Judge
from acq.training.phase import OneStep, StepResult
from acq.training.selection import Selection, majority_share, warnings_about


class Conversion(OneStep):
    """The last phase, one step.

    Args:
        settings: The section ``student``, whose losses judge the candidates.
        context: What the phases share.
    """

    name, section = "conversion", "student"

    def __init__(self, settings: StudentSettings, context: Context) -> None:
        batch = settings.batch_for(context.preprocessing.input_size)
        self.context, self.judge = context, Judge(batch, settings.losses.model_dump(), context)
        self.learning_rate = settings.learning_rate

    def step(self, number: int, rate: float) -> StepResult:
        """Select a candidate, convert it and measure the result."""
        context, output = self.context, self.context.teacher.output
        kinds = self.judge.kinds()
        images, qualities = kinds[0], self.judge.qualities(*kinds)
        selected = self.judge.best(qualities)
        context.student.load_state_dict(context.candidates[selected])
        context.candidates = {}
        convert_to_integers(context.student)
        context.synchronize_student()
        final, share = self.judge.quality(images), majority_share(images, output)
        context.selection = Selection(qualities, selected, final, share, self.judge.weights)
        for text in warnings_about(context.selection, self.learning_rate, output):
            warnings.warn(text, stacklevel=2)
        return StepResult({})
