"""The example images of a run, one strip per example: from the proposal to the attention on the finished image."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acq.files.documents import from_json, read_text
from acq.files.image_files import open_image
from acq.report.run_files import damage_reported
from acq.runs.names import SAMPLES
from acq.runs.samples import INDEX, STAGES

_FINISHED = STAGES[-1]
_PIXELS = 112  # longest side of an embedded image
_VEIL = (255, 40, 0)
_STRONGEST = 180  # opacity of the veil, of 255, where attention is highest
_GAP = 0.06  # between two images, in heights of an image


@dataclass(frozen=True)
class Strip:
    """One example. Lengths are in heights of an image.

    Attributes:
        label: The requested class; None where images are not asked for one answer each.
        seen: The class that the teacher sees in the finished image; None as above.
        requested: The requested centre (x, y) in [-1, 1].
        realised: The realised centre (x, y) in [-1, 1]; None where the network has no attention.
        stages: The images as data addresses, by stage, the finished one last.
        veil: The attention as a data address of a red veil; None as above.
        side: Width of an image.
    """

    label: int | None
    seen: int | None
    requested: tuple[float, float]
    realised: tuple[float, float] | None
    stages: Mapping[str, str]
    veil: str | None
    side: float

    @property
    def step(self) -> float:
        """From the left side of an image to that of the next."""
        return self.side + _GAP

    @property
    def width(self) -> float:
        """Of the whole strip: the stages, and the finished image with its attention, if there is any."""
        count = len(self.stages)
        return (count if self.veil else count - 1) * self.step + self.side

    def position(self, centre: tuple[float, float]) -> tuple[float, float]:
        """Where a centre is in the image at the end of the strip."""
        x, y = ((value + 1) / 2 for value in centre)
        return len(self.stages) * self.step + x * self.side, y


def read_strips(run: Path) -> list[Strip]:
    """The examples of a finished run, by class.

    Raises:
        RequestError: A file is missing or damaged.
    """
    index = run / SAMPLES / INDEX
    with damage_reported(index):
        strips = [_strip(run / SAMPLES, row) for row in from_json(read_text(index))]
    return sorted(strips, key=lambda strip: -1 if strip.label is None else strip.label)


def _strip(folder: Path, row: Mapping[str, Any]) -> Strip:
    images = {stage: _image(folder, row["files"][stage]) for stage in STAGES if stage in row["files"]}
    size = images[_FINISHED].size
    return Strip(
        label=None if row["label"] is None else int(row["label"]),
        seen=None if row["class"] is None else int(row["class"]),
        requested=_centre(row["requested"]),
        realised=None if row["realised"] is None else _centre(row["realised"]),
        stages={stage: _address(image) for stage, image in images.items()},
        veil=None if row["attention"] is None else _address(_veil(row["attention"], size)),
        side=size[0] / size[1],
    )


def _image(folder: Path, name: str) -> Image.Image:
    """A smaller copy of an image file of the folder. A damaged index may name files elsewhere."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not a file name")
    with damage_reported(folder / name), open_image(folder / name) as image:
        smaller = image.convert("L" if image.mode == "L" else "RGB")
    smaller.thumbnail((_PIXELS, _PIXELS))
    return smaller


def _veil(attention: Sequence[Sequence[float]], size: tuple[int, int]) -> Image.Image:
    """Attention [H, W] in [0, 1] as a red veil, as opaque as the attention is strong."""
    values = np.asarray(attention, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError("an attention map is not a table of numbers")
    opacity = Image.fromarray((_STRONGEST * values.clip(0, 1)).round().astype(np.uint8))
    longest = _PIXELS / max(size)
    veil = Image.new("RGB", (max(1, round(size[0] * longest)), max(1, round(size[1] * longest))), _VEIL)
    veil.putalpha(opacity.resize(veil.size, Image.Resampling.BICUBIC))
    return veil


def _centre(value: Sequence[Any]) -> tuple[float, float]:
    x, y = value
    return float(x), float(y)


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
