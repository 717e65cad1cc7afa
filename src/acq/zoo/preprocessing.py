"""The preprocessing of a network: what the user gives, completed by what is known, and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from acq.core.normalisations import IMAGENET_MEAN, IMAGENET_STD, usual_normalisations
from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError

SMALLEST = 8  # pixels per side
_WIDEST = 10  # standard deviation; with such a one all images are nearly constant


def preprocessing_of(
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    known: Preprocessing | None = None,
    *,
    resize: int | None = None,
    crop: int | None = None,
) -> Preprocessing:
    """Combine the given values with the known ones; without either, three channels are normalised as for ImageNet.

    Args:
        input_size: Channels, height and width.
        mean: Mean per channel, for pixels in [0, 1].
        std: Standard deviation per channel, for pixels in [0, 1].
        known: The preprocessing that the weights need, if it is known.
        resize: The shorter side that pictures of another size get before the crop.
        crop: The side of the crop to the centre, which is that of the network.

    Raises:
        RequestError: A value is missing or cannot be right.
    """
    require_both_or_neither(mean, std)
    size = input_size if input_size is not None else known.input_size if known is not None else None
    if size is None:
        raise RequestError("the size of the images is not known; give --input-size, such as 3,224,224")
    if len(size) != 3 or not all(isinstance(number, int) for number in size) or size[0] < 1 or min(size[1:]) < SMALLEST:
        raise RequestError(
            f"--input-size is {','.join(map(str, size))}; give channels, height and width, such as 3,32,32, "
            f"with at least {SMALLEST} pixels per side"
        )
    channels, height, width = size
    if mean is None or std is None:
        if known is None and channels != len(IMAGENET_MEAN):
            usual = "; ".join(map(str, usual_normalisations(channels)))
            raise RequestError(
                f"the normalisation of {channels} channels is not known; give --mean and --std. Usual ones are: {usual}"
            )
        mean, std = (known.mean, known.std) if known is not None else (IMAGENET_MEAN, IMAGENET_STD)
    _check_normalisation(mean, std, channels)
    return Preprocessing(
        (channels, height, width), tuple(map(float, mean)), tuple(map(float, std)),
        _framing((height, width), resize, crop, known),
    )  # fmt: skip


def require_both_or_neither(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse a mean without a standard deviation, and the reverse.

    Raises:
        RequestError: One of the two is missing.
    """
    if (mean is None) != (std is None):
        raise RequestError(f"--{'std' if std is None else 'mean'} is missing; give --mean and --std together")


def _framing(
    size: tuple[int, int], resize: int | None, crop: int | None, known: Preprocessing | None
) -> Framing | None:
    """What is given, or else what is known of this size, in the known interpolation."""
    if crop is not None and size != (crop, crop):
        raise RequestError(
            f"--crop is {crop} but the network takes {size[0]}x{size[1]}; leave it out, or give another --input-size"
        )
    if resize is not None and resize < min(size):
        raise RequestError(f"--resize is {resize} but the network takes {size[0]}x{size[1]}; give at least {min(size)}")
    framing = None if known is None else known.framing
    if resize is not None:
        return Framing(resize) if framing is None else replace(framing, resize=resize)
    return framing if known is not None and size == known.input_size[1:] else None


def _check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        shown = ",".join(f"{value:g}" for value in values)
        if len(values) != channels:
            raise RequestError(f"--{name} is {shown}; give {channels} values, one per channel")
        if not all(map(math.isfinite, values)):
            raise RequestError(f"--{name} is {shown}; give finite values")
    if max(mean) > 1:
        raise RequestError(f"--mean is above 1 ({max(mean):g}); pixels are in [0, 1], divide mean and std by 255")
    if max(std) > _WIDEST:
        raise RequestError(f"--std is {max(std):g}; pixels are in [0, 1], divide mean and std by 255")
    if min(std) <= 0:
        raise RequestError(f"--std has {min(std):g}; give values above 0")
