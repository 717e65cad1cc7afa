"""Distillation: the student learns to give the teacher's logits and features on augmented synthetic images."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import nn

from acq.core.outputs import Traits
from acq.core.settings import Auto, LossWeights, Section, number_or
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student
from acq.synthesis.losses import weighted_sum
from acq.training.context import Context
from acq.training.fitting import Weight, fitted_weights
from acq.training.guards import RangeGuard
from acq.training.judging import Batches, Judge
from acq.training.losses import student_losses
from acq.training.phase import StepResult, is_reported
from acq.training.schedule import PIXELS_AT_ONCE, images_that_fit, learning_rate_factor
from acq.training.selection import TRAINED, StudentQuality

_USUAL_BATCH = 64
_FEATURES = 4.0  # automatic weight
_WARMUP = 0.02
_GUARD_EVERY = 50  # steps between two references of the range guard


class StudentLosses(LossWeights):
    """Weights of the student's losses (formulas in ``acq.training.losses``)."""

    logits: float = Field(1.0, ge=0, description="relative squared error of logits")
    probabilities: float = Field(0.0, ge=0, description="KL divergence from the teacher's probabilities")
    features: Weight = Field(
        "auto",
        description="relative squared error of the last features with places; auto: 4, or 0 where there are none",
    )


class StudentSettings(Section):
    """Training of the student."""

    steps: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="training steps; auto: auto_steps, or 0 if a convolution is depthwise or values are returned",
    )
    auto_steps: int = Field(600, ge=0, description="training steps where steps is auto")
    round_steps: int = Field(
        200,
        ge=0,
        description="steps of a round, after which training ends unless the student is closer to the teacher than "
        "before; 0: one round",
    )
    batch: Annotated[int, Field(ge=1)] | Auto = Field("auto", description="images per step; auto: at most 64")
    learning_rate: float = Field(
        0.025, gt=0, description="peak learning rate of weights and biases, in mean quantization steps of their layer"
    )
    scale_learning_rate: float = Field(
        0.0075, gt=0, description="peak learning rate of scales, in quantization steps by which the range's end moves"
    )
    augmentation: float = Field(1.0, ge=0, le=1, description="share of augmented images in a batch")
    renew_every: int = Field(20, ge=1, description="steps between two renewals of synthetic images")
    renew_count: int = Field(0, ge=0, description="images, as generated, that replace the oldest ones per renewal")
    losses: StudentLosses = StudentLosses()

    def fitted(self, traits: Traits) -> Self:
        """The settings with numbers in place of each ``auto`` that depends on the network.

        Args:
            traits: Of the network.

        Raises:
            RequestError: The weight of the features is given, and the network has none.
        """
        automatic = {"features": _FEATURES if traits.spatial else 0.0}
        return self.model_copy(update={"losses": fitted_weights(self.losses, "student", automatic, traits)})

    def batch_for(self, input_size: tuple[int, int, int]) -> int:
        """Images per step of ``input_size`` (C, H, W)."""
        usual = images_that_fit(_USUAL_BATCH, input_size, pixels=PIXELS_AT_ONCE, least=4)
        return number_or(self.batch, usual)


def no_closer(steps: int) -> str:
    """Why training ends after a round of ``steps``."""
    return f"{steps} steps brought the student no closer to the teacher"


class Distillation:
    """Weights, biases and scales of the student are trained with Adam, in rounds of equal length.

    Each round has its own warm-up and decay, because a student is no better before the rate has come down. Training
    ends after a round that brought the student no closer to the teacher.

    Args:
        settings: The section ``student``.
        context: What the phases share.
    """

    name = section = "student"

    def __init__(self, settings: StudentSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        rounding_alone = context.teacher.structure.depthwise or not context.teacher.output.asks
        self.steps = number_or(settings.steps, 0 if rounding_alone else settings.auto_steps)
        rounds = max(1, round(self.steps / (settings.round_steps or max(1, self.steps))))
        self.round = math.ceil(self.steps / rounds)
        self.batch = settings.batch_for(context.preprocessing.input_size)
        context.require_rows(self.batch)
        self.judge = Judge(self.batch, settings.losses.model_dump(), context)
        self._best: StudentQuality | None = None  # of all students so far, known after the first of several rounds
        self.optimizer = torch.optim.Adam(_parameter_groups(context.student, settings.scale_learning_rate), fused=True)
        self.guard = RangeGuard(context.student)

    def step(self, number: int, rate: float) -> StepResult:
        """Train the student on one batch. The last step keeps it as a candidate."""
        context, settings = self.context, self.settings
        if number == 0:
            self._set_learning_rates()
        if number % _GUARD_EVERY == 0 or not self.guard.reference:
            self.guard.remember()
        if settings.renew_count and number and number % settings.renew_every == 0:
            context.dataset = context.dataset.renewed(context.generated(settings.renew_count))
        batch = context.augmented(context.dataset.sample(self.batch, context.rng), settings.augmentation)
        weights = settings.losses.model_dump()
        output = context.student_output(batch.images)
        losses = student_losses(output, (batch.logits, batch.features), weights, context.teacher.output)
        begun = number % self.round
        length = min(self.round, self.steps - (number - begun))
        factor = learning_rate_factor(begun, length, _WARMUP) * rate
        context.descend(self.optimizer, weighted_sum(losses, weights), factor)
        ends_round = begun + 1 == length
        fault = self.guard.fault() if ends_round or is_reported(number, self.steps) else None
        if not ends_round or fault is not None:
            return StepResult(losses, fault)
        closer = self._keep_if_closer()
        ended = number + 1 == self.steps
        return StepResult(losses, enough=None if closer or ended else no_closer(length))

    def state(self) -> dict[str, Any]:
        """The optimizer, the scales with which the guard compares, and the quality of the best student."""
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "reference": dict(self.guard.reference),
            "best": None if self._best is None else asdict(self._best),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        device = self.context.rng.device
        self.guard.reference = {name: value.to(device) for name, value in state["reference"].items()}
        self._best = None if state["best"] is None else StudentQuality(**state["best"])

    def _keep_if_closer(self) -> bool:
        """Keep the student as a candidate unless an earlier round has a better one; whether it is the best so far."""
        context, state = self.context, copy.deepcopy(self.context.student.state_dict())
        if self.round == self.steps:  # the last phase compares it with the others
            context.candidates[TRAINED] = state
            return True
        kinds = self.judge.kinds()
        found = self.judge.quality(*kinds)
        best = self._best or self._best_before(kinds)
        context.student.load_state_dict(state)
        closer = not context.any_process(not found.is_better_than(best))
        self._best = found if closer else best
        if closer or TRAINED not in context.candidates:
            context.candidates[TRAINED] = state
        return closer

    def _best_before(self, kinds: list[Batches]) -> StudentQuality:
        """The quality of the best candidate before training. The student changes."""
        found = self.judge.qualities(*kinds)
        return found[self.judge.best(found)]

    def _set_learning_rates(self) -> None:
        """Rates of weights and biases in units of their layer's mean scale, which calibration has found."""
        layers = self.context.student.layers()
        for group, (_, layer) in zip(self.optimizer.param_groups, layers, strict=False):
            group["lr"] = self.settings.learning_rate * layer.weight_quantizer.scale.mean().item()


def _parameter_groups(student: Student, scale_learning_rate: float) -> list[dict[str, Any]]:
    """One group per layer, and one group for the scales of each number of levels.

    Scales are learned as logarithms. A change of the logarithm by 1 / qmax moves the end of the range by one step.
    """
    layers = [
        {"params": [layer.weight, *([] if layer.bias is None else [layer.bias])], "lr": 0.0}
        for _, layer in student.layers()
    ]
    scales: dict[int, list[nn.Parameter]] = {}
    for quantizer in student.modules():
        if isinstance(quantizer, WeightQuantizer | ActivationQuantizer):
            scales.setdefault(quantizer.qmax, []).append(quantizer.log_scale)
    return [*layers, *({"params": params, "lr": scale_learning_rate / qmax} for qmax, params in scales.items())]
