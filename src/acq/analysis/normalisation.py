"""Whether a network's images are normalised as in training: judged before a run by its first batch norm.

Procedural scenes have about the mean and the contrast of photographs. Under the right normalisation, the input of the
first batch norm then has about its stored statistics. Channels of scenes are alike, so their order is not judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acq.core.normalisations import Normalisation, usual_normalisations
from acq.core.pixels import normalise
from acq.core.values import Moments, Preprocessing
from acq.errors import Note, RequestError
from acq.network.constants import device_of
from acq.network.teacher import Teacher
from acq.synthesis.pictures import enough
from acq.synthesis.scenes import scenes

WITHOUT_NORMS = (
    "the network has no BatchNorm2d, so images start from scenes, without a generator; where batch norms were folded, "
    "the network or file before that gives better images"
)
WITHOUT_FEATURES = (
    "the network has no features with places, such as a map of at least 4 cells, so it has no attention, and images "
    "start from scenes, without a generator"
)
_CLEARLY = 2.0  # factor by which another normalisation must be closer
_FAR = 0.04  # distance below which the given normalisation is right, whatever others give
_LEAST = 1e-4  # of a layer's mean variance, for channels that never fire


@dataclass(frozen=True)
class Fit:
    """How far scenes under a normalisation are from the stored statistics; 0 is equal."""

    normalisation: Normalisation
    distance: float


def tell_what_is_missing(teacher: Teacher) -> None:
    """Say that images are made without batch norms, or without features, where the network has none."""
    if not teacher.structure.normalised:
        warnings.warn(WITHOUT_NORMS, Note, stacklevel=3)
    elif teacher.features is None:
        warnings.warn(WITHOUT_FEATURES, Note, stacklevel=3)


def check_normalisation(teacher: Teacher, preprocessing: Preprocessing, *, given: bool) -> None:
    """Warn where a usual normalisation fits clearly better than that of a network's images.

    Args:
        teacher: The network.
        preprocessing: Of its images.
        given: Whether the user or a built-in network gave it; otherwise it is a guess.

    Raises:
        RequestError: The normalisation is a guess, and there are no batch norms with which it could be compared.
    """
    if teacher.structure.normalised:
        if not given:
            assumed = f"{preprocessing.mean}, {preprocessing.std}"
            warnings.warn(f"mean and std are not given, so ImageNet's are assumed: {assumed}", Note, stacklevel=3)
        text = doubt(fits(teacher, preprocessing))
        if text is not None:
            warnings.warn(text, stacklevel=3)
    elif not given:
        usual = "; ".join(map(str, usual_normalisations(preprocessing.input_size[0])))
        raise RequestError(
            "the normalisation of the images is not known, and without batch norms it cannot be checked; give that of "
            f"training. Usual ones are: {usual}"
        )


def fits(teacher: Teacher, preprocessing: Preprocessing) -> list[Fit]:
    """The given normalisation, and then the usual ones, with their distances on scenes. The scenes are always the same.

    Args:
        teacher: A network with batch norms.
        preprocessing: Of its images; its normalisation is the given one.
    """
    size = preprocessing.input_size
    pixels = scenes(enough(size), size, torch.Generator().manual_seed(0)).to(device_of(teacher))
    given = Normalisation("given", preprocessing.mean, preprocessing.std)
    return [
        Fit(each, _distance(teacher, pixels, preprocessing, each)) for each in (given, *usual_normalisations(size[0]))
    ]


def doubt(found: Sequence[Fit]) -> str | None:
    """A warning where a usual normalisation fits clearly better than the given one; else None.

    Args:
        found: The given normalisation, and then the others.
    """
    given, *others = found
    best = min(others, key=lambda fit: fit.distance)
    if given.distance < _FAR or given.distance < _CLEARLY * best.distance:
        return None
    return (
        f"the normalisation may be wrong: on scenes the first batch norm is at a distance of {given.distance:.2g} from "
        f"its statistics, and of {best.distance:.2g} with {best.normalisation}. If that is the one of training, give "
        "it. The order of the channels is not checked"
    )


def moments_distance(found: Moments, stored: Moments) -> float:
    """Bhattacharyya's distance of normal distributions with these moments, mean over channels.

    It treats values that are too large and too small alike, and does not depend on the unit of a channel.
    """
    least = _LEAST * stored.var.mean() + torch.finfo(torch.float32).tiny
    one, other = found.var + least, stored.var + least
    apart = (found.mean - stored.mean).square() / (one + other) / 4
    wider = ((one + other) / (2 * (one * other).sqrt())).log() / 2
    return (apart + wider).mean().item()


@torch.no_grad()
def _distance(teacher: Teacher, pixels: Tensor, preprocessing: Preprocessing, other: Normalisation) -> float:
    images = normalise(pixels, replace(preprocessing, mean=other.mean, std=other.std))
    return moments_distance(teacher.first_moments(images), teacher.stored_moments[0])
