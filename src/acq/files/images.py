"""Labelled images, used to measure accuracy and never to quantize.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq.core.outputs import Output
from acq.core.pixels import Bytes, from_bytes
from acq.core.scores import Scores
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.arrays import is_cifar_folder, read_cifar, read_npz
from acq.files.framing import FramedImages, require_framing, tell
from acq.files.image_files import read_class_folders
from acq.files.limits import images_at_once

FORMS = "a .npz file, a folder with one sub-folder per class, or a folder of CIFAR-10 .bin files"


class Images(Protocol):
    """Images uint8 [N, H, W, C] that are read slice by slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Bytes: ...


@dataclass(frozen=True)
class LabelledImages:
    """Images and what they show.

    Attributes:
        images: uint8 [N, H, W, C], in memory or decoded from files when sliced.
        labels: Class indices, int64 [N]; or 0 and 1 for no and yes to each label, int64 [N, K];
            or class indices per cell [N, H, W] or per step [N, T].
    """

    images: Images
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def read(
    path: Path,
    *,
    preprocessing: Preprocessing,
    output: Output,
    limit: int | None = None,
    names: Sequence[str] = (),
) -> LabelledImages:
    """Read labelled images and check that they fit a network.

    Images of another size than the network's are resized and cropped to their centre (``acq.files.framing``), unless
    their labels have places. A note says so.

    Three forms are read:

    - A ``.npz`` file with ``images`` uint8 [N, H, W, 3] and integer ``labels`` [N]. A network with one channel takes
      [N, H, W] or [N, H, W, 1].
    - A folder with one sub-folder per class. Where the names of classes are known, sub-folders have these names, or
      numbers. Otherwise they are in class order: sorted as numbers if all are numbers, or else alphabetically. A folder
      with fewer sub-folders than classes must name them by class index.
    - A folder of CIFAR-10 binary files: ``test_batch.bin``, or otherwise every ``data_batch_*.bin``. One ``.bin`` file
      is read too.

    A network that says yes or no to K labels takes a ``.npz`` file whose ``labels`` are 0 and 1, [N, K]. Where K is 1,
    [N] and folders of two classes, no and yes, are taken too. A map is compared with classes per cell [N, H, W] of any
    size, and a sequence with classes per step [N, T]. There 255 stands for an unknown class, or -1 where there are 256
    classes or more.

    Images in class folders come in turns: the first image of each class, then the second. So a limit covers the
    classes evenly. Broken image files are left out, with a warning that counts and names them.

    Args:
        path: The file or folder.
        preprocessing: Of the network's images.
        output: How the network's logits decide.
        limit: Keep only the first images.
        names: Of the classes, in order, by which folders may be named.

    Raises:
        RequestError: Nothing is at ``path``, it cannot be read, or it does not fit the network.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit is {limit}; give at least 1")
    require_framing(preprocessing)
    if not path.exists():
        raise RequestError(f"no data at {path}; give {FORMS}")
    if path.is_dir() and not is_cifar_folder(path):
        names = _folder_names(output, names)
        files, known_labels, others = read_class_folders(path, preprocessing, _folders(path, output), limit, names)
        tell(preprocessing, others, len(files))
        return LabelledImages(files, known_labels)
    if path.is_dir() or path.suffix == ".bin":
        images, labels = read_cifar(path)
    elif path.suffix == ".npz":
        images, labels = read_npz(path, preprocessing.input_size[0])
    else:
        raise RequestError(f"{path} is not a form of data that acq reads; give {FORMS}")
    _check_shapes(path, images, labels, preprocessing)
    _check_labels(path, labels, output)
    images, labels = images[:limit], labels[:limit].astype(np.int64)
    if images.shape[1:3] == preprocessing.input_size[1:]:
        return LabelledImages(images, labels)
    if output.parts[0].places:
        raise RequestError(
            f"images in {path} are {images.shape[1]}x{images.shape[2]} and their labels have places, so they are not "
            f"cropped; give images of {'x'.join(map(str, preprocessing.input_size[1:]))}, or give --input-size"
        )
    tell(preprocessing, len(images), len(images))
    return LabelledImages(FramedImages(images, preprocessing), labels)


def batches(
    data: LabelledImages, preprocessing: Preprocessing, size: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the data in order as batches for a network; image files are decoded here.

    Args:
        data: The labelled images.
        preprocessing: The network's normalisation.
        size: Images per batch at most; ``images_at_once`` if None.

    Yields:
        Normalised images float32 [n, C, H, W], and labels int64 [n] or [n, ...].

    Raises:
        RequestError: An image file is broken.
    """
    size = size or images_at_once(preprocessing.input_size)
    for start in range(0, len(data), size):
        part = slice(start, start + size)
        yield from_bytes(data.images[part], preprocessing), torch.from_numpy(data.labels[part].copy())


def _check_shapes(path: Path, images: Bytes, labels: NDArray[np.int64], preprocessing: Preprocessing) -> None:
    channels, height, width = preprocessing.input_size
    if images.ndim and len(images) != len(labels):
        raise RequestError(f"{path} has {len(images)} images and {len(labels)} labels; give one label per image")
    if not len(labels):
        raise RequestError(f"{path} has no images; give at least one")
    is_picture = images.ndim == 4 and images.shape[3] == channels and channels in (1, 3) and min(images.shape) > 0
    if not is_picture and images.shape[1:] != (height, width, channels):
        raise RequestError(
            f"images in {path} are {list(images.shape)} but the network takes [N, {height}, {width}, {channels}]; "
            f"give images with {channels} channels at the end"
        )


def _folder_names(output: Output, names: Sequence[str]) -> Sequence[str]:
    """The names that folders may have; those of one label are no and yes, whatever it is called."""
    return names if output.whole is not None and output.whole.decision == "one" else ()


def _folders(path: Path, output: Output) -> int:
    """The number of classes that a folder may have: those of the network, or no and yes."""
    scores = output.whole
    if scores is None or (scores.decision == "each" and scores.size > 1):
        raise RequestError(
            f"{path} is a folder of classes but the network returns {output}; "
            f"give a .npz file with labels, {_wanted(_scores(path, output))}"
        )
    return max(2, scores.size)


def _scores(path: Path, output: Output) -> Scores:
    """What the labels are compared with; RequestError where nothing can be."""
    if output.accuracy is None:
        raise RequestError(f"the network returns {output}, which no labels are compared with; leave {path} out")
    return output.parts[0]


def _wanted(scores: Scores) -> str:
    """The labels that scores are compared with, for a message."""
    if scores.kind == "map":
        return f"class indices per cell, [N, {', '.join('WHD'[: len(scores.places)][::-1])}]"
    if scores.kind == "sequence":
        return f"class indices per step, [N, {scores.places[0]}]"
    return "class indices, [N]" if scores.kind == "class" else f"0 and 1, [N, {scores.size}]"


def _check_labels(path: Path, labels: NDArray[np.int64], output: Output) -> None:
    scores = _scores(path, output)
    found = labels.shape[1:]
    fits = {
        "class": found == (),
        "multilabel": found == (scores.size,) or (scores.size == 1 and found == ()),
        "map": len(found) == len(scores.places),
        "sequence": found == scores.places,
    }
    if not fits[scores.kind]:
        raise RequestError(f"labels in {path} are {list(labels.shape)}; the network takes {_wanted(scores)}")
    known = labels[labels != scores.ignored] if scores.places else labels
    low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
    most = scores.size - 1 if scores.decision == "one" else 1
    if low < 0 or high > most:
        what = f"has {scores.size} classes" if scores.decision == "one" else "says no or yes"
        way_out = f"number them 0 to {most}" if scores.decision == "one" else "give 0 and 1"
        raise RequestError(f"labels in {path} go from {low} to {high} but the network {what}; {way_out}")
