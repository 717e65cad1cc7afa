"""What a network sees in pictures, in the words of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acq.api.evaluate import Target, target
from acq.core.evaluate import evaluating
from acq.core.pixels import from_bytes
from acq.core.scores import Kind, Scores
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.framing import require_framing, tell
from acq.files.image_files import decode, require_picture_channels
from acq.files.limits import images_at_once

_YES = 0.5  # probability from which a label applies


@dataclass(frozen=True)
class Choice:
    """A class or a label.

    Attributes:
        index: In class order.
        name: Its name, or such as ``class 3`` where no names are known.
        percent: Its probability: by a softmax over the scores of classes, or by a sigmoid of the score of a label.
    """

    index: int
    name: str
    percent: float


@dataclass(frozen=True)
class Prediction:
    """What a network sees in a picture.

    Attributes:
        image: The file.
        answers: The most likely classes, or the labels that apply, the most likely first.
    """

    image: Path
    answers: tuple[Choice, ...]


def predict(
    network: nn.Module | str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 3,
    preprocessing: Preprocessing | None = None,
    outputs: str | None = None,
    output_kinds: Sequence[Kind] = (),
    class_names: Sequence[str] = (),
    device: str = "auto",
) -> list[Prediction]:
    """Name the classes of pictures.

    Pictures of another size than the network's are resized and cropped to their centre (``acq.files.framing``).

    Args:
        network: A student, a run folder, a file of ``acq export``, the name of a network, or any classifier.
        images: Image files, at least one.
        top: Classes per picture at most; of labels all that apply.
        preprocessing: As for ``acq.evaluate``.
        outputs: As for ``acq.evaluate``.
        output_kinds: As for ``acq.evaluate``.
        class_names: In class order; by default as known.
        device: ``auto``, ``cpu`` or ``cuda``. A network in memory runs where it is.

    Returns:
        One prediction per picture, in the given order.

    Raises:
        RequestError: A file is no image, the target does not exist, or it does not answer for images as a whole.
    """
    found = target(
        network, preprocessing=preprocessing, outputs=outputs, output_kinds=output_kinds, class_names=class_names,
        device=device,
    )  # fmt: skip
    return predictions(found, [] if isinstance(images, str) else list(map(Path, images)), top)


def predictions(found: Target, images: Sequence[Path], top: int) -> list[Prediction]:
    """What a target sees in pictures; arguments and errors are those of ``predict``."""
    scores, known = found.output.whole, found.preprocessing
    if scores is None:
        raise RequestError(f"the network returns {found.output}, no classes of images; evaluate it with labels instead")
    if top < 1:
        raise RequestError(f"--top is {top}; give at least 1")
    if not images:
        raise RequestError("there are no images; give a list of at least one")
    require_picture_channels(known, "call it in Python")
    require_framing(known)
    made, others, size = list[Prediction](), 0, images_at_once(known.input_size)
    with evaluating(found.network):
        for start in range(0, len(images), size):
            files = images[start : start + size]
            pictures, framed = zip(*(decode(file, known) for file in files), strict=True)
            others += sum(framed)
            rows = found.network(from_bytes(np.stack(pictures), known).to(found.device))
            made += [
                Prediction(file, tuple(_answers(row, scores, top, found.class_names)))
                for file, row in zip(files, scores.log_probabilities(rows).exp().cpu(), strict=True)
            ]
    tell(known, others, len(images))
    return made


def _answers(shares: Tensor, scores: Scores, top: int, names: Sequence[str]) -> list[Choice]:
    """The answers for one image, by the probability of each [A]."""
    if scores.decision == "one":
        order = torch.topk(shares, min(top, scores.size)).indices
    else:
        yes = shares[: scores.size]
        order = yes.argsort(descending=True)
        order = order[yes[order] >= _YES]
    return [Choice(index, scores.word(index, names), 100 * shares[index].item()) for index in order.tolist()]
