"""Pictures of any size in the network's size: the arithmetic of torchvision's ``Resize`` and ``CenterCrop`` on Pillow.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from acq.core.pixels import Bytes
from acq.core.values import Framing, Preprocessing
from acq.errors import Note, RequestError
from acq.files.limits import PIXELS

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CROP_SHARE = 0.875  # of the resized side, where the network's own share is not known: 224 of 256 pixels


def framing_of(preprocessing: Preprocessing) -> Framing:
    """The framing that is known, or the usual one: a crop of 7/8 of the shorter side, bilinear."""
    known = preprocessing.framing
    return known if known is not None else Framing(round(min(preprocessing.input_size[1:]) / CROP_SHARE))


def framing_fault(preprocessing: Preprocessing) -> str | None:
    """Why pictures cannot be framed as a preprocessing says; None where they can."""
    framing = preprocessing.framing
    if framing is None:
        return None
    if framing.resize < min(preprocessing.input_size[1:]):
        return "pictures are resized below the network's size"
    return None if framing.interpolation in INTERPOLATIONS else f"the interpolation is {framing.interpolation!r}"


def require_framing(preprocessing: Preprocessing) -> None:
    """Refuse a framing by which no picture can get the network's size.

    Raises:
        RequestError: It resizes below that size, or in an unknown interpolation.
    """
    if (fault := framing_fault(preprocessing)) is not None:
        least, known = min(preprocessing.input_size[1:]), ", ".join(INTERPOLATIONS)
        raise RequestError(f"{fault}; give a framing of at least {least} pixels, in one of {known}")


def framed(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize a picture by the margin of ``framing_of``, and cut out the centre.

    The margin is the framing's side over the network's shorter side. The picture is resized until it covers that many
    times the network's height and width: for equal sides, until its shorter side has the framing's pixels.

    Args:
        image: In grey or RGB.
        preprocessing: Of the network.

    Returns:
        The picture in the network's size.

    Raises:
        ValueError: The picture is so narrow that it would become too large.
    """
    framing, (_, height, width) = framing_of(preprocessing), preprocessing.input_size
    margin = Fraction(framing.resize, min(height, width))
    factor = max(margin * height / image.height, margin * width / image.width)  # exact; sides are rounded down
    tall, wide = int(factor * image.height), int(factor * image.width)
    if tall * wide > PIXELS:
        raise ValueError(
            f"{image.height}x{image.width} pixels become {tall}x{wide} before the crop, above the limit of {PIXELS:,}"
        )
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    resized = image.resize((wide, tall), INTERPOLATIONS[framing.interpolation])
    return resized.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class FramedImages:
    """Images of one other size that get the network's when sliced.

    Attributes:
        images: uint8 [N, h, w, C], of 1 or 3 channels.
        preprocessing: Of the network.
    """

    images: Bytes
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice, /) -> Bytes:
        channels, height, width = self.preprocessing.input_size
        pixels = self.images[index]
        pictures = map(Image.fromarray, pixels[..., 0] if channels == 1 else pixels)
        try:
            shown = np.stack([np.asarray(framed(picture, self.preprocessing)) for picture in pictures])
        except ValueError as error:
            raise RequestError(f"images of {error}; give images of other sides") from error
        return shown.reshape(-1, height, width, channels)


def tell(preprocessing: Preprocessing, others: int, images: int) -> None:
    """Say in a note what is done with images of another size than the network's, if there are any.

    Args:
        preprocessing: Of the network.
        others: How many have another size.
        images: How many there are.
    """
    if others:
        warnings.warn(told(preprocessing, others, images), Note, stacklevel=3)  # the caller of the reader


def told(preprocessing: Preprocessing, others: int, images: int) -> str:
    """What is done with the ``others`` among ``images``, which have another size than the network's; for a note."""
    framing, (_, height, width) = framing_of(preprocessing), preprocessing.input_size
    way = f"the shorter side is resized to {framing.resize} pixels"
    if height != width:
        way = f"they are resized to cover {framing.resize / min(height, width):.4g} times that size"
    return (
        f"{others:,} of {images:,} images have another size than {height}x{width}: {way} ({framing.interpolation}), "
        "and the centre is taken; --resize changes that"
    )
