"""Generator training: the generator learns from the frozen teacher alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from acq.core.outputs import Traits
from acq.core.settings import Auto, LossWeights, Section, number_or
from acq.errors import RequestError
from acq.synthesis.losses import total
from acq.training.context import Context
from acq.training.fitting import Weight, fitted_weights
from acq.training.guards import CollapseDetector
from acq.training.phase import StepResult, is_reported
from acq.training.schedule import PIXELS_AT_ONCE, images_that_fit, learning_rate_factor

_USUAL_BATCH = 64
_OF_NORMS = {"statistics": 10.0, "consistency": 0.3}  # automatic weights where there are batch norms
_BETAS = (0.5, 0.999)  # of Adam
_WARMUP = 0.1


class GeneratorLosses(LossWeights):
    """Weights of the generator's losses (formulas in ``acq.synthesis.losses``)."""

    classes: float = Field(1.0, ge=0, description="cross entropy of the teacher's answers and the requested one")
    statistics: Weight = Field(
        "auto", description="distance from batch-norm statistics, in stored deviations; auto: 10, or 0 without them"
    )
    statistics_plain: float = Field(0.0, ge=0, description="distance from batch-norm statistics as in GDFQ")
    centre: float = Field(60.0, ge=0, description="ACQ: distance of realised and requested attention centre")
    paired: float = Field(5.0, ge=0, description="ACQ: adversarial loss on pairs of one condition")
    consistency: Weight = Field(
        "auto", description="ACQ: attention with running and with batch statistics; auto: 0.3, or 0 without them"
    )
    smoothness: float = Field(0.0, ge=0, description="mean squared difference of neighbouring pixels")


class GeneratorSettings(Section):
    """The generator and its training."""

    kind: str = Field("canvas", description="name of a registered generator, such as canvas or conditional")
    noise_dim: int = Field(64, ge=1, description="noise values per image")
    width: int = Field(128, ge=1, description="channels at the lowest resolution")
    steps: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="training steps; auto: auto_steps, or 0 for maps and without batch norms or features; "
        "0: no generator",
    )
    auto_steps: int = Field(
        500, ge=1, description="training steps where steps is auto; fewer above 128 x 128 pixels, as in a batch"
    )
    batch: Annotated[int, Field(ge=4, multiple_of=2)] | Auto = Field(
        "auto", description="images per step, in pairs of one condition; auto: at most 64"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of Adam")
    centre_std: float = Field(
        0.15, ge=0, le=1, description="standard deviation of requested attention centres, in half image sizes"
    )
    consistency_every: int = Field(
        5, ge=1, description="steps between two evaluations of the consistency loss, whose weight grows as much"
    )
    losses: GeneratorLosses = GeneratorLosses()

    def fitted(self, traits: Traits) -> Self:
        """The settings with numbers in place of each ``auto`` that depends on the network.

        Args:
            traits: Of the network.

        Raises:
            RequestError: A given setting needs what the network does not have.
        """
        needed = (
            (traits.whole, "asks images for one answer each, and the network answers otherwise"),
            (traits.normalised, "learns from batch norms, and the network has none"),
            (traits.spatial, "follows attention, and the network has no features with places"),
        )
        faults = [fault for there, fault in needed if not there]
        share = min(1.0, PIXELS_AT_ONCE / (_USUAL_BATCH * traits.pixels))  # of the usual batch
        steps = number_or(self.steps, 0 if faults else max(1, round(share * self.auto_steps)))
        if steps and faults:
            raise RequestError(
                f"generator.steps is {steps}, but a generator {faults[0]}; leave it out, or give generator.steps=0"
            )
        automatic = _OF_NORMS if traits.normalised else dict.fromkeys(_OF_NORMS, 0.0)
        # without steps nothing reads the losses
        read = traits if steps else replace(traits, whole=True, asks=True, spatial=True)
        losses = fitted_weights(self.losses, "generator", automatic, read)
        return self.model_copy(update={"steps": steps, "losses": losses})


class GeneratorTraining:
    """Each step draws conditions, makes images and descends the losses of ``acq.synthesis.losses``.

    Args:
        settings: The section ``generator``.
        context: What the phases share.
    """

    name = section = "generator"

    def __init__(self, settings: GeneratorSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        self.steps = number_or(settings.steps, settings.auto_steps)
        size = context.preprocessing.input_size
        self.batch = number_or(settings.batch, images_that_fit(_USUAL_BATCH, size, pixels=PIXELS_AT_ONCE, least=4))
        context.require_rows(self.batch)
        parameters = context.generator.parameters()
        self.optimizer = torch.optim.Adam(parameters, settings.learning_rate, betas=_BETAS, fused=True)
        self.detector = CollapseDetector(context.teacher.output)

    def step(self, number: int, rate: float) -> StepResult:
        """Train the generator on one batch."""
        context = self.context
        condition = context.conditions.draw(self.batch // 2, context.rng)
        weights = self._weights(number)
        batch = context.imagine(condition, batch_statistics=bool(weights["consistency"]))
        loss, losses = total(batch, weights)
        context.descend(self.optimizer, loss, learning_rate_factor(number, self.steps, _WARMUP) * rate)
        fault = None
        if context.rng.device.type == "cpu" or is_reported(number, self.steps):  # numbers make an accelerator wait
            fault = self.detector.fault(condition.label, condition.centre, batch.eval_output)
        return StepResult(losses, fault)

    def state(self) -> dict[str, Any]:
        """The optimizer and the detector."""
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "detector": self.detector.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.detector.restore(state["detector"])

    def _weights(self, number: int) -> dict[str, float]:
        """The weights in step ``number``.

        The consistency loss needs a forward pass of its own. It is evaluated every few steps, with a weight that
        stands for the steps between.
        """
        weights = self.settings.losses.model_dump()
        alone = not any(weight for name, weight in weights.items() if name != "consistency")
        every = 1 if alone else self.settings.consistency_every
        weights["consistency"] *= 0 if (number + 1) % every else every
        return weights
