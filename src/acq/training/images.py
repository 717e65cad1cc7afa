"""Image refinement: the synthetic dataset is made batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor

from acq.core.outputs import Traits
from acq.core.settings import Auto, LossWeights, Section, number_or
from acq.errors import RequestError
from acq.synthesis.augmentation import jitter
from acq.synthesis.dataset import Examples, SyntheticDataset
from acq.synthesis.losses import total
from acq.synthesis.refinement import ImageBatch, start
from acq.training.context import Context
from acq.training.fitting import Weight, fitted_weights
from acq.training.phase import StepResult
from acq.training.schedule import PIXELS_AT_ONCE, PIXELS_KEPT, images_that_fit, learning_rate_factor

EXAMPLES = 12  # images whose way from proposal to finished image is kept for the report
_USUAL_COUNT, _USUAL_BATCH = 512, 256
_SCENE = 0.5  # share of a scene where there is a generator
_STROKES = 1.0  # share of drawings for networks that read
# automatic weights; without statistics, smoothness keeps the class loss from painting noise
_WITH_NORMS = {"classes": 0.3, "statistics": 10.0, "centre": 20.0, "smoothness": 0.0}
_WITHOUT_NORMS = {"classes": 1.0, "statistics": 0.0, "centre": 0.0, "smoothness": 1.0}
_WARMUP = 0.05


class ImageLosses(LossWeights):
    """Weights of the losses that refine images (formulas in ``acq.synthesis.losses``)."""

    classes: Weight = Field(
        "auto",
        description="cross entropy of the teacher's answers and the requested ones; auto: 0.3, 1 without batch norms, "
        "or 0 where nothing can be asked for",
    )
    statistics: Weight = Field(
        "auto", description="distance from batch-norm statistics, in stored deviations; auto: 10, or 0 without them"
    )
    statistics_plain: float = Field(0.0, ge=0, description="distance from batch-norm statistics as in GDFQ")
    centre: Weight = Field(
        "auto",
        description="distance of realised and requested attention centre; auto: 20; 0 for maps, without batch norms "
        "or without features",
    )
    paired: float = Field(0.0, ge=0, description="adversarial loss on pairs of one condition")
    consistency: float = Field(0.0, ge=0, description="attention with running and with batch statistics")
    smoothness: Weight = Field(
        "auto",
        description="mean squared difference of neighbouring pixels; auto: 0, or 1 for the classes of a network "
        "without batch norms",
    )


class ImageSettings(Section):
    """The synthetic dataset and how its images are refined."""

    count: Annotated[int, Field(ge=16, multiple_of=2)] | Auto = Field(
        "auto", description="images of the dataset; auto: at most 512, and 10 megapixels in all"
    )
    batch: Annotated[int, Field(ge=4, multiple_of=2)] | Auto = Field(
        "auto", description="images refined together; auto: at most 256"
    )
    steps: int = Field(100, ge=0, description="refinement steps per image; 0 takes images as generated")
    learning_rate: float = Field(0.1, gt=0, description="peak learning rate of the pixels' logits")
    scene: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto", description="share of a procedural scene in the starting image; auto: 0.5, or 1 without a generator"
    )
    strokes: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto",
        description="share of these scenes that are drawings of strokes; auto: 1 for networks that read text, else 0",
    )
    losses: ImageLosses = ImageLosses()

    def fitted(self, traits: Traits, *, generated: bool) -> Self:
        """The settings with numbers in place of each ``auto`` that depends on the network or the generator.

        Where no loss is left, scenes stay as they are: a network without batch norms that nothing can be asked of.

        Args:
            traits: Of the network.
            generated: Whether there is a generator.

        Raises:
            RequestError: A given setting needs what the network or the run does not have.
        """
        strokes = _STROKES if traits.reads else 0.0
        automatic = dict(_WITH_NORMS if traits.normalised else _WITHOUT_NORMS)
        if not (traits.whole and traits.spatial):
            automatic["centre"] = 0.0
        if not traits.asks:
            automatic |= {"classes": 0.0, "smoothness": 0.0}
        filled = self.losses.filled(**automatic)
        if not traits.asks and not any(filled.model_dump().values()):
            return self.filled(scene=1.0, strokes=strokes).model_copy(update={"steps": 0})
        losses = fitted_weights(self.losses, "images", automatic, traits)
        if not generated and self.scene not in ("auto", 1):
            raise RequestError(
                f"images.scene is {self.scene:g}, but without a generator images begin as scenes; leave it out, or "
                "give generator.steps"
            )
        scene = _SCENE if generated else 1.0
        return self.filled(scene=scene, strokes=strokes).model_copy(update={"losses": losses})


class ImageRefinement:
    """Pixels start from the generator's proposals over scenes and descend the losses.

    Args:
        settings: The section ``images``.
        context: What the phases share.
    """

    name = section = "images"

    def __init__(self, settings: ImageSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        size = context.preprocessing.input_size
        self.count = number_or(settings.count, images_that_fit(_USUAL_COUNT, size, pixels=PIXELS_KEPT, least=16))
        self.batch = number_or(settings.batch, images_that_fit(_USUAL_BATCH, size, pixels=PIXELS_AT_ONCE, least=4))
        context.require_rows(self.count % self.batch or self.batch)  # the last batch is the smallest
        self.steps = max(1, settings.steps * math.ceil(self.count / self.batch))
        self._origin: tuple[Tensor | None, Tensor] | None = None  # proposals and starting images of the first batch
        self._current: ImageBatch | None = None
        self._finished: list[tuple[Tensor, Tensor, Tensor]] = []  # images, labels and centres of each batch

    def step(self, number: int, rate: float) -> StepResult:
        """Refine one batch by one step. The last step makes the dataset."""
        settings, context = self.settings, self.context
        if not settings.steps:
            context.dataset = context.generated(self.count)
            return StepResult({})
        if self._current is None:
            self._current = self._started()
        batch, done = self._current, number % settings.steps
        images, condition = jitter(batch.images(context.preprocessing), batch.condition, context.rng)
        weights = settings.losses.model_dump()
        loss, losses = total(context.observe(images, condition, batch_statistics=bool(weights["consistency"])), weights)
        context.descend(batch.optimizer, loss, learning_rate_factor(done, settings.steps, _WARMUP) * rate)
        if done + 1 == settings.steps:
            self._finish(batch)
        if number + 1 == self.steps:
            images, label, centre = (torch.cat(parts) for parts in zip(*self._finished, strict=True))
            context.dataset = SyntheticDataset(context.teach(images), label, centre)
            self._finished = []
        return StepResult(losses)

    def state(self) -> dict[str, Any]:
        """Images that are being refined, images that are finished, and the origin of the first ones."""
        return {
            "current": None if self._current is None else self._current.state(),
            "finished": list(self._finished),
            "origin": self._origin,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        device = self.context.rng.device
        current, origin = state["current"], state["origin"]
        self._current = None if current is None else ImageBatch.restored(current, device)
        self._finished = [tuple(part.to(device) for part in parts) for parts in state["finished"]]
        self._origin = None if origin is None else (_moved(origin[0], device), origin[1].to(device))

    def preview(self, count: int) -> Tensor | None:
        """The first images that are being refined, normalised; None between two batches."""
        if self._current is None:
            return None
        return self._current.images(self.context.preprocessing)[:count].detach()

    def _started(self) -> ImageBatch:
        context, settings = self.context, self.settings
        left = self.count - sum(len(label) for _, label, _ in self._finished)
        condition = context.conditions.draw((min(self.batch, left) + 1) // 2, context.rng)
        scene = number_or(settings.scene, _SCENE)
        proposals = context.proposals(condition) if scene < 1 else None
        batch = start(
            proposals,
            condition,
            context.preprocessing,
            background=context.pictures(len(condition.label)),
            scene=scene,
            learning_rate=settings.learning_rate,
        )
        if not self._finished:
            starting = batch.images(context.preprocessing).detach()
            first = None if proposals is None else proposals[:EXAMPLES].clone()
            self._origin = first, starting[:EXAMPLES].clone()
        return batch

    def _finish(self, batch: ImageBatch) -> None:
        images, condition = batch.images(self.context.preprocessing).detach(), batch.condition
        if self._origin is not None:
            first = (part[:EXAMPLES].clone() for part in (images, condition.label, condition.centre))
            self.context.examples = Examples(*self._origin, *first)
            self._origin = None
        self._finished.append((images, condition.label, condition.centre))
        self._current = None


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
