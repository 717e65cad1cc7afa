"""Image files: a folder with one sub-folder per class, and the checked decoding of one file.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acq.core.pixels import Bytes
from acq.core.values import Preprocessing
from acq.errors import RequestError, first_line
from acq.files.class_names import label_of
from acq.files.framing import framed
from acq.files.limits import PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # by content; some other formats of Pillow start external programs
_NAMED_FILES = 5  # broken files that a warning names


class BrokenImageError(RequestError):
    """The content of an image file cannot be decoded."""


@dataclass(frozen=True)
class ImageFiles:
    """Images uint8 [N, H, W, C] that are decoded when sliced, so that a large folder is never in memory at once.

    Attributes:
        paths: One file per image.
        preprocessing: Of the network, whose channels and size every image gets.
    """

    paths: tuple[Path, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice, /) -> Bytes:
        return np.stack([decode(path, self.preprocessing)[0] for path in self.paths[index]])


def read_class_folders(
    path: Path, preprocessing: Preprocessing, classes: int, limit: int | None = None, names: Sequence[str] = ()
) -> tuple[ImageFiles, NDArray[np.int64], int]:
    """Find the image files of a folder with one sub-folder per class, and decode each once to check it.

    Args:
        path: The folder.
        preprocessing: Of the network, which takes 1 or 3 channels.
        classes: Number of classes of the network.
        limit: Keep only the first images, before broken files are left out.
        names: Of the classes, in order, where they are known.

    Returns:
        The images in turns over the classes, their labels int64 [N], and how many have another size than the network's.

    Raises:
        RequestError: The folders do not fit the classes, or no file can be decoded.
    """
    require_picture_channels(preprocessing, "give a .npz file")
    groups = [
        [(file, label) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        for folder, label in _class_folders(path, classes, names)
    ]
    turns = [entry for turn in zip_longest(*groups) for entry in turn if entry is not None][:limit]
    if not turns:
        raise RequestError(f"no images in the sub-folders of {path}; give files that end in {', '.join(SUFFIXES)}")
    files, labels, framed = zip(*_decodable(path, turns, preprocessing), strict=True)
    return ImageFiles(files, preprocessing), np.array(labels, dtype=np.int64), sum(framed)


def require_picture_channels(preprocessing: Preprocessing, way_out: str) -> None:
    """Refuse a network that takes no image files; ``way_out`` says what to do."""
    channels = preprocessing.input_size[0]
    if channels not in (1, 3):
        raise RequestError(f"the network takes {channels} channels but image files have 1 or 3; {way_out}")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file whose format and number of pixels are checked; pixels are decoded when they are used.

    Raises:
        ValueError: The image has more than ``PIXELS``.
        OSError, SyntaxError, ValueError: The file cannot be read, or is broken; also while pixels are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower than Pillow's
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(first_line(error)) from error
    with image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"{image.height}x{image.width} pixels are more than the limit of {PIXELS:,}")
        yield image


def _class_folders(path: Path, classes: int, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Each class's folder and label, in class order: by the names of classes, by number, or in alphabetical order."""
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    numbered = all(folder.name.isdecimal() for folder in folders)
    folders.sort(key=lambda folder: (int(folder.name) if numbered else 0, folder.name))
    if not folders:
        raise RequestError(f"{path} has no sub-folders; give one sub-folder per class")
    if names and (not numbered or all(folder.name in names for folder in folders)):
        return sorted(((folder, label_of(folder.name, names, path)) for folder in folders), key=itemgetter(1))
    if len(folders) == classes:
        return [(folder, label) for label, folder in enumerate(folders)]
    if len(folders) > classes or not numbered or int(folders[-1].name) >= classes:
        raise RequestError(
            f"{path} has {len(folders)} sub-folders but the network has {classes} classes; "
            f"give one per class, or name them by class index, 0 to {classes - 1}"
        )
    return [(folder, int(folder.name)) for folder in folders]


def _decodable(
    path: Path, entries: list[tuple[Path, int]], preprocessing: Preprocessing
) -> list[tuple[Path, int, bool]]:
    """The entries whose files can be decoded, and whether each has another size than the network's.

    Broken files are reported now, not in the middle of the evaluation.
    """
    whole: list[tuple[Path, int, bool]] = []
    broken: dict[Path, BrokenImageError] = {}
    for file, label in entries:
        try:
            whole.append((file, label, decode(file, preprocessing)[1]))
        except BrokenImageError as error:
            broken[file] = error
    if not whole:
        raise RequestError(f"all {len(broken)} image files in {path} are broken: {next(iter(broken.values()))}")
    if broken:
        names = [file.name for file in broken][:_NAMED_FILES] + ["..."] * (len(broken) > _NAMED_FILES)
        warnings.warn(
            f"{len(broken)} of {len(entries)} image files in {path} are broken and left out: {', '.join(names)}",
            stacklevel=4,  # the caller of images.read
        )
    return whole


def decode(path: Path, preprocessing: Preprocessing) -> tuple[Bytes, bool]:
    """One file's pixels [H, W, C], and whether it had another size.

    Raises:
        BrokenImageError: The content cannot be decoded.
        RequestError: The system refuses the file, or the image has more than 8 bits per channel.
    """
    channels, *size = preprocessing.input_size
    try:
        with open_image(path) as image:
            if image.mode.startswith(("I", "F")):
                raise RequestError(f"{path} has more than 8 bits per channel; save it with 8")
            shown = image.convert("L" if channels == 1 else "RGB")
            other = [shown.height, shown.width] != size
            pixels = np.asarray(framed(shown, preprocessing) if other else shown)
    except FileNotFoundError as error:
        raise RequestError(f"there is no file {path}; give an image") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # from the system, so the image may be whole
            raise RequestError(f"{path} cannot be read ({error.strerror}); make it readable") from error
        raise BrokenImageError(f"{path} is a broken image, or too narrow ({first_line(error)}); replace it") from error
    return pixels.reshape(*size, channels), other
