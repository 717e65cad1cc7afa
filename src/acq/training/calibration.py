"""Calibration: ranges of all quantizers, equalization of channels, and layer-wise rounding of weights."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from acq.core.settings import Auto, Section, number_or
from acq.network.teacher import Teacher
from acq.quantization.untrained import fit_untrained
from acq.synthesis.augmentation import augment
from acq.training.context import Context
from acq.training.phase import OneStep, StepResult
from acq.training.schedule import PIXELS_KEPT, images_that_fit
from acq.training.selection import CALIBRATED

_USUAL_COUNT = 1024


class CalibrationSettings(Section):
    """Calibration of the student."""

    images: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="images that calibration sees, at most; auto: 1024, and 10 megapixels in all"
    )
    augmentation: bool = Field(True, description="add an augmented copy of each image while there are fewer images")
    equalization: bool | Auto = Field(
        "auto", description="rescale channels of low-bit layer inputs; auto: unless a convolution is depthwise"
    )
    rounding: bool = Field(True, description="round weights layer by layer in closed form")
    enough: float = Field(
        0.0,
        ge=0,
        description="mean divergence from the teacher, in nats, at which an untrained student ends the run (a fifth of "
        "it as relative squared error where values are returned); needs first_student and images.steps; 0: never",
    )
    first_student: bool = Field(
        True, description="begin with a student that scenes calibrate; it is kept unless a later one is better"
    )

    def images_for(self, input_size: tuple[int, int, int]) -> int:
        """Most images of ``input_size`` (C, H, W) that calibration sees."""
        usual = images_that_fit(_USUAL_COUNT, input_size, pixels=PIXELS_KEPT, least=16)
        return number_or(self.images, usual)

    def equalizes(self, teacher: Teacher) -> bool:
        """Whether the channels of low-bit layer inputs of a network's student are rescaled."""
        return not teacher.structure.depthwise if self.equalization == "auto" else self.equalization


def keep_untrained(name: str, images: Tensor, settings: CalibrationSettings, context: Context) -> None:
    """Calibrate, equalize and round the student on images [N, C, H, W], and keep it as the candidate ``name``."""
    student, teacher = context.student, context.teacher
    equalized, rounded = settings.equalizes(teacher), settings.rounding
    fit_untrained(student, images, equalized=equalized, rounded=rounded, keep={teacher.features})
    context.synchronize_student()
    context.candidates[name] = copy.deepcopy(student.state_dict())


class Calibration(OneStep):
    """One step that makes the student work in low bits on the synthetic dataset, without training.

    Args:
        settings: The section ``calibration``.
        context: What the phases share.
    """

    name = section = "calibration"

    def __init__(self, settings: CalibrationSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        self.count = settings.images_for(context.preprocessing.input_size)

    def step(self, number: int, rate: float) -> StepResult:
        """Calibrate, equalize and round the student, and keep it as a candidate."""
        context = self.context
        images = context.dataset.sample(self.count, context.rng).images
        missing = self.images_of(len(images)) - len(images)
        if missing:
            images = torch.cat((images, augment(images, context.rng)[:missing]))
        keep_untrained(CALIBRATED, images, self.settings, context)
        return StepResult({})

    def images_of(self, count: int) -> int:
        """How many images calibration sees of ``count`` synthetic ones, augmented copies included."""
        return min(self.count, count * (2 if self.settings.augmentation else 1))
