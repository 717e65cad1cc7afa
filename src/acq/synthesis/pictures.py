"""What images start from: procedural scenes, and drawings of strokes for networks that read."""

from __future__ import annotations

import torch
from torch import Tensor

from acq.core.pixels import normalise
from acq.core.values import Preprocessing
from acq.network.teacher import Teacher
from acq.synthesis.scenes import scenes
from acq.synthesis.strokes import strokes

_PICTURES, _PIXELS = 64, 1 << 20  # most pictures of a kind that a network is asked about, and most pixels in all
_BATCH = 4  # pictures per forward pass
_CLEARLY = 1.5  # factor by which drawings must tell more; networks of photographs have 0.6 to 1, of text 3


def pictures(count: int, size: tuple[int, int, int], rng: torch.Generator, drawn: float = 0.0) -> Tensor:
    """Draw scenes and drawings of strokes, in random order.

    Args:
        count: Number of pictures.
        size: Channels, height and width.
        rng: Random state.
        drawn: Share of drawings, 0 to 1.

    Returns:
        Pixels in [0, 1], [count, C, H, W].
    """
    drawings = round(drawn * count)
    kinds = ((scenes, count - drawings), (strokes, drawings))
    found = [make(number, size, rng) for make, number in kinds if number]
    if len(found) == 1:
        return found[0]
    return torch.cat(found)[torch.randperm(count, generator=rng, device=rng.device)]


def enough(size: tuple[int, int, int]) -> int:
    """How many pictures of a size (C, H, W) tell what a network makes of their kind."""
    _, height, width = size
    return min(_PICTURES, max(2, _PIXELS // (height * width)))


@torch.no_grad()
def reads(teacher: Teacher, preprocessing: Preprocessing, device: torch.device) -> bool:
    """Whether answers tell drawings of strokes apart much better than scenes (this project's definition).

    It compares the mutual information of picture and answer (``Output.information``). The pictures are always the same.

    Args:
        teacher: The network, on ``device``.
        preprocessing: Of its images.
        device: Where the pictures are made.
    """
    size, rng = preprocessing.input_size, torch.Generator(device).manual_seed(0)
    count = enough(size)
    of_scenes, of_drawings = (
        _told(teacher, normalise(make(count, size, rng), preprocessing)) for make in (scenes, strokes)
    )
    return of_drawings > _CLEARLY * of_scenes


def _told(teacher: Teacher, images: Tensor) -> float:
    parts = images.split(_BATCH)  # type: ignore[no-untyped-call]
    return teacher.output.information(torch.cat([teacher.logits(part) for part in parts]))
