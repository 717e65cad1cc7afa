"""Whether a network's images are normalised as it expects: said before a run begins."""

from __future__ import annotations

import warnings

from acq.core.normalisations import usual_normalisations
from acq.core.values import Preprocessing
from acq.errors import Note, RequestError
from acq.network.teacher import Teacher

WITHOUT_NORMS = (
    "the network has no BatchNorm2d, so images start from scenes and follow classes and smoothness, without a "
    "generator; where batch norms were folded, the network or file before that gives better images"
)


def check_normalisation(teacher: Teacher, preprocessing: Preprocessing, *, given: bool) -> None:
    """Say what a user should know about norms and normalisation.

    Args:
        teacher: The network.
        preprocessing: Of its images.
        given: Whether the user or a built-in network gave it; otherwise it is a guess.

    Raises:
        RequestError: The normalisation is a guess, and there are no batch norms with which it could be compared.
    """
    if not given and teacher.structure.normalised:
        assumed = f"{preprocessing.mean}, {preprocessing.std}"
        warnings.warn(f"mean and std are not given, so ImageNet's are assumed: {assumed}", Note, stacklevel=3)
    if teacher.structure.normalised:
        return
    if not given:
        usual = "; ".join(map(str, usual_normalisations(preprocessing.input_size[0])))
        raise RequestError(
            "the normalisation of the images is not known, and without batch norms it cannot be checked; give that of "
            f"training. Usual ones are: {usual}"
        )
    warnings.warn(WITHOUT_NORMS, Note, stacklevel=3)
