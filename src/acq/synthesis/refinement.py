"""Finish images: a proposal of the generator laid over a scene, whose pixels then descend the losses themselves.

The generator says what is where; one network for all images, though, paints what is easiest for it, over and over.
Scenes differ by construction, and pixels that start from different scenes arrive at different images (this project's
definition; that pixels can be trained against batch-norm statistics is Cai et al.'s, arXiv 2001.00281, and Yin et
al.'s, arXiv 1912.08795).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acq.core.processes import ALONE, Processes
from acq.core.values import Condition, GeneratorBatch, Preprocessing
from acq.network.teacher import Teacher
from acq.synthesis.augmentation import jitter
from acq.synthesis.losses import total
from acq.synthesis.scenes import scenes

_EDGE = 0.02  # pixels start this far from black and white at least, where a sigmoid still has a slope


class ImageBatch:
    """Images on their way: the logits of their pixels, what was asked of them, and the optimizer of the pixels.

    In a team pixels are those of this process's rows, ``condition`` is that of the whole batch.
    """

    def __init__(self, pixels: Tensor, condition: Condition, learning_rate: float) -> None:
        self.condition = condition
        logits = torch.logit(pixels, eps=_EDGE).contiguous(memory_format=torch.channels_last)
        self.logits = nn.Parameter(logits)
        self.optimizer = torch.optim.Adam([self.logits], learning_rate, betas=(0.5, 0.9), fused=True)

    def images(self, preprocessing: Preprocessing) -> Tensor:
        """The images as they stand, normalised [N, C, H, W]."""
        mean, std = _columns(preprocessing, self.logits)
        return (torch.sigmoid(self.logits) - mean) / std

    def state(self, team: Processes = ALONE) -> dict[str, Any]:
        """All that is needed to go on exactly, of the whole ``team``'s rows."""
        count = len(self.condition.label)
        return {
            "condition": vars(self.condition),
            "logits": team.gather(self.logits.detach(), count),
            "optimizer": _over_rows(self.optimizer.state_dict(), lambda rows: team.gather(rows, count)),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device, team: Processes = ALONE) -> ImageBatch:
        """The draft that ``state`` was taken from, this process's share of it."""
        condition = Condition(**{name: value.to(device) for name, value in state["condition"].items()})
        logits = team.share(state["logits"])
        draft = cls(torch.sigmoid(logits).to(device), condition, 0.0)
        with torch.no_grad():
            draft.logits.copy_(logits)
        draft.optimizer.load_state_dict(_over_rows(state["optimizer"], team.share))
        return draft


def begin(
    proposals: Tensor,
    condition: Condition,
    preprocessing: Preprocessing,
    *,
    scene: float,
    learning_rate: float,
    rng: torch.Generator,
    team: Processes = ALONE,
) -> ImageBatch:
    """Normalised ``proposals`` [N, C, H, W] blended with scenes, which have the share ``scene`` of the logits; this
    process's share of them."""
    mean, std = _columns(preprocessing, proposals)
    behind = scenes(len(proposals), preprocessing.input_size, rng)
    logits = torch.lerp(torch.logit(proposals * std + mean, eps=_EDGE), torch.logit(behind, eps=_EDGE), scene)
    return ImageBatch(torch.sigmoid(team.share(logits)), condition, learning_rate)


def refine(
    draft: ImageBatch,
    teacher: Teacher,
    preprocessing: Preprocessing,
    weights: Mapping[str, float],
    rng: torch.Generator,
    *,
    mixed: bool = False,
    team: Processes = ALONE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted losses of ``acq.synthesis.losses`` on the images as they stand, a little moved: the sum and its parts.

    ``mixed`` is the precision of the teacher's readings.
    """
    images, condition = jitter(draft.images(preprocessing), draft.condition, rng)
    eval_output = teacher.read(images, condition.label, moments=True, mixed=mixed, team=team)
    train_output = None
    if weights.get("consistency"):
        train_output = teacher.read(images, condition.label, batch_statistics=True, mixed=mixed, team=team)
    whole = team.gather(images, len(condition.label))
    return total(GeneratorBatch(condition, whole, eval_output, train_output, teacher.stored_moments), weights)


def _over_rows(state: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state with what it keeps of each row changed, its counts of steps left."""
    kept = {
        index: {name: change(value) if value.dim() else value for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": kept}


def _columns(preprocessing: Preprocessing, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return mean, std
