"""Image files: a folder with one sub-folder per class, and the checked decoding of one file.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acq.core.pixels import Bytes
from acq.errors import RequestError, first_line
from acq.files.limits import PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # by content; some other formats of Pillow start external programs
_NAMED_FILES = 5  # broken files that a warning names

Size = tuple[int, int, int]


class BrokenImageError(RequestError):
    """The content of an image file cannot be decoded."""


@dataclass(frozen=True)
class ImageFiles:
    """Images uint8 [N, H, W, C] that are decoded when sliced, so that a large folder is never in memory at once.

    Attributes:
        paths: One file per image.
        input_size: Channels, height and width that every image must have; files are converted to the channels.
    """

    paths: tuple[Path, ...]
    input_size: Size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice, /) -> Bytes:
        return np.stack([_decode(path, self.input_size) for path in self.paths[index]])


def read_class_folders(
    path: Path, input_size: Size, classes: int, limit: int | None = None
) -> tuple[ImageFiles, NDArray[np.int64]]:
    """Find the image files of a folder with one sub-folder per class, and decode each once to check it.

    Args:
        path: The folder.
        input_size: Channels (1 or 3), height and width of the network's input.
        classes: Number of classes of the network.
        limit: Keep only the first images, before broken files are left out.

    Returns:
        The images in turns over the classes, and their labels int64 [N].

    Raises:
        RequestError: The folders do not fit the classes, an image has another size, or no file can be decoded.
    """
    if input_size[0] not in (1, 3):
        raise RequestError(f"the network takes {input_size[0]} channels but image files have 1 or 3; give a .npz file")
    groups = [
        [(file, label) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        for folder, label in _class_folders(path, classes)
    ]
    turns = [entry for turn in zip_longest(*groups) for entry in turn if entry is not None][:limit]
    if not turns:
        raise RequestError(f"no images in the sub-folders of {path}; give files that end in {', '.join(SUFFIXES)}")
    files, labels = zip(*_decodable(path, turns, input_size), strict=True)
    return ImageFiles(files, input_size), np.array(labels, dtype=np.int64)


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


def _class_folders(path: Path, classes: int) -> list[tuple[Path, int]]:
    """Each class's folder and label, in class order."""
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    numbered = all(folder.name.isdecimal() for folder in folders)
    folders.sort(key=lambda folder: (int(folder.name) if numbered else 0, folder.name))
    if not folders:
        raise RequestError(f"{path} has no sub-folders; give one sub-folder per class")
    if len(folders) == classes:
        return [(folder, label) for label, folder in enumerate(folders)]
    if len(folders) > classes or not numbered or int(folders[-1].name) >= classes:
        raise RequestError(
            f"{path} has {len(folders)} sub-folders but the network has {classes} classes; "
            f"give one per class, or name them by class index, 0 to {classes - 1}"
        )
    return [(folder, int(folder.name)) for folder in folders]


def _decodable(path: Path, entries: list[tuple[Path, int]], input_size: Size) -> list[tuple[Path, int]]:
    """The entries whose files can be decoded: broken files are reported now, not in the middle of the evaluation."""
    whole: list[tuple[Path, int]] = []
    broken: dict[Path, BrokenImageError] = {}
    for file, label in entries:
        try:
            _decode(file, input_size)
            whole.append((file, label))
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


def _decode(path: Path, input_size: Size) -> Bytes:
    """One file's pixels [H, W, C].

    Raises:
        BrokenImageError: The content cannot be decoded.
        RequestError: The system refuses the file, or the image has another size or more than 8 bits per channel.
    """
    try:
        with open_image(path) as image:
            _check_image(path, input_size, image)
            pixels = np.asarray(image.convert("L" if input_size[0] == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # from the system, so the image may be whole
            raise RequestError(f"{path} cannot be read ({error.strerror}); make it readable") from error
        raise BrokenImageError(f"{path} is a broken image ({first_line(error)}); replace it") from error
    return pixels.reshape(*input_size[1:], input_size[0])


def _check_image(path: Path, input_size: Size, image: Image.Image) -> None:
    width, height = image.size
    if (height, width) != input_size[1:]:
        raise RequestError(
            f"{path} has {height}x{width} pixels but the network takes {input_size[1]}x{input_size[2]}; "
            "resize it or give --input-size"
        )
    if image.mode.startswith(("I", "F")):
        raise RequestError(f"{path} has more than 8 bits per channel; save it with 8")
