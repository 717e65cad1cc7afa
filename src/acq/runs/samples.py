"""The example images of a run: how each became what it is, and where the teacher looks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from acq.analysis.diagnostics import rounded
from acq.core.pixels import to_bytes
from acq.core.values import Preprocessing
from acq.files.atomic import write_atomically
from acq.network.teacher import Teacher
from acq.runs.names import SAMPLES
from acq.synthesis.dataset import Examples, SyntheticDataset
from acq.training.images import EXAMPLES

INDEX = "samples.json"
STAGES = ("proposal", "start", "finished")


def write_samples(
    folder: Path, teacher: Teacher, preprocessing: Preprocessing, examples: Examples | None, dataset: SyntheticDataset
) -> None:
    """Write a dozen examples as PNG files, and what was requested and realised as ``samples.json``.

    Args:
        folder: The run folder.
        teacher: The network.
        preprocessing: Of its images.
        examples: Refined images on their way; None where images are as generated, and then the first images of the
            dataset are written.
        dataset: The synthetic images.
    """
    (folder / SAMPLES).mkdir(exist_ok=True)
    stages = _stages(examples, dataset)
    asked = dataset.conditions(slice(EXAMPLES)) if examples is None else examples
    label, centre = asked.label, asked.centre
    with torch.no_grad():
        output = teacher.read(stages["finished"], label)
    looks = teacher.features is not None
    seen = _seen(teacher, output.logits, label)
    pixels = {stage: to_bytes(images, preprocessing) for stage, images in stages.items()}
    rows = []
    for index in range(len(label)):
        files = {stage: f"{index:02d}-{stage}.png" for stage in pixels}
        for stage, name in files.items():
            _save(pixels[stage][index], folder / SAMPLES / name)
        rows.append(
            {
                "label": None if seen is None else int(label[index]),
                "class": None if seen is None else int(seen[index]),
                "requested": rounded(centre[index].tolist()),
                "realised": rounded(output.centre[index].tolist()) if looks else None,
                "attention": [rounded(line.tolist()) for line in _relative(output.attention[index])] if looks else None,
                "files": files,
            }
        )
    write_atomically(folder / SAMPLES / INDEX, json.dumps(rows) + "\n")


def _seen(teacher: Teacher, logits: Tensor, label: Tensor) -> Tensor | None:
    """The answer that the teacher gives to each image, [n]; None where it does not answer for images as a whole."""
    scores = teacher.output.whole
    if scores is None:
        return None
    return torch.where(scores.came_true(logits, label), label, scores.answered(logits))


def _stages(examples: Examples | None, dataset: SyntheticDataset) -> dict[str, Tensor]:
    if examples is None:
        return {"finished": dataset.images[:EXAMPLES]}
    stages = {stage: getattr(examples, stage) for stage in STAGES}
    return {stage: images for stage, images in stages.items() if images is not None}  # no proposal without a generator


def _save(image: NDArray[np.uint8], path: Path) -> None:
    """Write an image [H, W, C] of 1 channel, or the first 3 channels of an image with more."""
    shown = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
    Image.fromarray(np.ascontiguousarray(shown)).save(path)


def _relative(attention: Tensor) -> Tensor:
    """An attention map whose maximum is one."""
    return attention / attention.amax().clamp_min(1e-12)
