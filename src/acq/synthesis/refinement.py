"""Image refinement: pixels descend the losses themselves, starting from a proposal blended with a picture.

The generator decides the content. One generator for all images, however, repeats what is easiest for it. Pictures of
``acq.synthesis.pictures`` differ by construction, so pixels that start from different ones end as different images.
This is this project's definition. Pixels were trained against batch-norm statistics by Cai et al. (arXiv 2001.00281)
and Yin et al. (arXiv 1912.08795).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acq.core.pixels import denormalise, normalise
from acq.core.values import Condition, Preprocessing

_EDGE = 0.02  # least distance of a starting pixel from black and white, so that its sigmoid has a slope
_BETAS = (0.5, 0.9)  # of Adam


class ImageBatch:
    """Images that are being refined: the logits of their pixels and the optimizer of these logits.

    Args:
        pixels: Starting values in [0, 1], [N, C, H, W].
        condition: What is requested of each image.
        learning_rate: Of the logits, at its highest.
    """

    def __init__(self, pixels: Tensor, condition: Condition, learning_rate: float) -> None:
        self.condition = condition
        logits = torch.logit(pixels, eps=_EDGE).contiguous(memory_format=torch.channels_last)
        self.logits = nn.Parameter(logits)
        self.optimizer = torch.optim.Adam([self.logits], learning_rate, betas=_BETAS, fused=True)

    def images(self, preprocessing: Preprocessing) -> Tensor:
        """The present images, normalised [N, C, H, W]."""
        return normalise(torch.sigmoid(self.logits), preprocessing)

    def state(self) -> dict[str, Any]:
        """Everything that is needed to continue exactly; later steps do not change it."""
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return {"condition": vars(self.condition), "logits": self.logits.detach().clone(), "optimizer": optimizer}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> ImageBatch:
        """The image batch from which ``state`` was taken."""
        condition = Condition(**{name: value.to(device) for name, value in state["condition"].items()})
        batch = cls(torch.sigmoid(state["logits"]).to(device), condition, 0.0)
        with torch.no_grad():
            batch.logits.copy_(state["logits"])
        batch.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        return batch


def start(
    proposals: Tensor | None,
    condition: Condition,
    preprocessing: Preprocessing,
    *,
    background: Tensor,
    scene: float,
    learning_rate: float,
) -> ImageBatch:
    """Blend the generator's proposals with pictures, in pixel logits.

    Args:
        proposals: Normalised images [N, C, H, W]; None where there is no generator, and images start as pictures.
        condition: What is requested of each image.
        preprocessing: Of the network.
        background: Pictures (``acq.synthesis.pictures``), pixels in [0, 1], [N, C, H, W].
        scene: Share of the picture, 0 to 1.
        learning_rate: Of the logits, at its highest.
    """
    if proposals is None:
        return ImageBatch(background, condition, learning_rate)
    pixels = denormalise(proposals, preprocessing)
    logits = torch.lerp(torch.logit(pixels, eps=_EDGE), torch.logit(background, eps=_EDGE), scene)
    return ImageBatch(torch.sigmoid(logits), condition, learning_rate)
