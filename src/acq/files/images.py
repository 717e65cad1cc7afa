"""Readers for labelled images, used to report accuracy and never to quantize.

Shapes: N images, C channels, H x W pixels. What is read are bytes [N, H, W, C]; what a network gets is made
by ``normalise``, the one home of pixel normalisation.
"""

from __future__ import annotations

import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from acq.core.values import Preprocessing
from acq.errors import RequestError, first_line
from acq.files.limits import IMAGES_BYTES, PIXELS, images_at_once, in_bytes, require_at_most

T = TypeVar("T")
Bytes = NDArray[np.uint8]
Size = tuple[int, int, int]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMS = "a .npz file, a folder with one sub-folder a class, or a folder of CIFAR-10 .bin files"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of a file, whatever its name says: others start other programs
UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, AttributeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
_NAMED = 5  # broken files
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


class Images(Protocol):
    """Bytes [N, H, W, C] that are read a slice at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Bytes: ...


class _BrokenImage(RequestError):
    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, H, W, C], in memory or decoded from files as they are sliced, and labels int64 [N]."""

    images: Images
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded when sliced, so that a large folder is never in memory as a whole."""

    paths: tuple[Path, ...]
    input_size: Size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice, /) -> Bytes:
        return np.stack([_decode(path, self.input_size) for path in self.paths[index]])


def read(path: Path, *, input_size: Size, classes: int, limit: int | None = None) -> LabelledImages:
    """The labelled images at ``path``, checked against the network's ``input_size`` (C, H, W) and class
    count.

    A ``.npz`` has ``images`` uint8 [N, H, W, 3] ([N, H, W] or [N, H, W, 1] for a network with one channel)
    and integer ``labels`` [N]. A folder has one sub-folder a class, in class order: names that are all
    numbers count as such, others go alphabetically. A folder with fewer sub-folders than classes must name
    them by class index. A folder of CIFAR-10 binary files is read for ``test_batch.bin``, or else for every
    ``data_batch_*.bin``.

    ``limit`` keeps the first images. Folders of classes are ordered class by class in turn (the first image
    of each class, then the second), so that a limit sees the classes evenly. Files that are broken are left out, with a
    warning that counts and names them.

    Raises:
        RequestError: nothing is there, it cannot be read, or it does not fit the network.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit must be at least 1, not {limit}")
    if not path.exists():
        raise RequestError(f"no data at {path}; give {FORMS}")
    keep = slice(limit)
    if path.is_dir() and not list(path.glob("*_batch*.bin")):
        return _read_folder(path, input_size, classes, keep)
    if path.is_dir() or path.suffix == ".bin":
        images, labels = _read_cifar(path)
    elif path.suffix == ".npz":
        images, labels = _read_npz(path, input_size[0])
    else:
        raise RequestError(f"{path} is not data that can be read; give {FORMS}")
    _check_shapes(path, images, labels, input_size)
    _check_labels(path, labels, classes)
    return LabelledImages(images[keep], labels[keep].astype(np.int64))


def normalise(images: Bytes, preprocessing: Preprocessing) -> Tensor:
    """Bytes [N, H, W, C] -> float32 [N, C, H, W] as the network takes them."""
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous().div_(255)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return pixels.sub_(mean).div_(std)


def to_bytes(images: Tensor, preprocessing: Preprocessing) -> Bytes:
    """The inverse of ``normalise``, rounded and clipped: [N, C, H, W] -> uint8 [N, H, W, C]."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    pixels = images.detach().cpu().float().mul(std).add(mean).mul(255).round().clamp(0, 255)
    array: Bytes = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return array


def batches(
    data: LabelledImages, preprocessing: Preprocessing, size: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images [n, C, H, W] and labels [n], at most ``size`` at a time and in order; files are
    decoded here. By default ``images_at_once``.

    Raises:
        RequestError: an image file is broken.
    """
    size = size or images_at_once(preprocessing.input_size)
    for start in range(0, len(data), size):
        part = slice(start, start + size)
        yield normalise(data.images[part], preprocessing), torch.from_numpy(data.labels[part].copy())


def _read_npz(path: Path, channels: int) -> tuple[Bytes, NDArray[np.int64]]:
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in ("images", "labels") if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise RequestError(f"{path} has no array {missing[0]!r}; save it with images= and labels=")
            _check_arrays(path, *(_header(archive, name) for name in ("images", "labels")))
            images, labels = (_array(archive, name) for name in ("images", "labels"))
    except (*UNREADABLE, NotImplementedError, RuntimeError, MemoryError) as error:  # compressed otherwise, encrypted
        raise RequestError(f"{path} cannot be read as .npz ({first_line(error)}); save it anew") from error
    if images.ndim == 3 and channels == 1:
        images = images[..., None]  # [N, H, W] -> [N, H, W, 1]
    return images, labels


@dataclass(frozen=True)
class _Header:
    """What an array says of itself, and how many bytes the archive says it has."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    with archive.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):  # the others' headers may have gigabytes
            raise ValueError(f"{name} has a header of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return _Header(shape, dtype, archive.getinfo(f"{name}.npy").file_size - file.tell())


def _check_arrays(path: Path, images: _Header, labels: _Header) -> None:
    """Kinds and sizes, before anything is allocated for them: a compressed file of a kilobyte may claim terabytes."""
    if images.dtype != np.uint8:
        raise RequestError(f"images in {path} are {images.dtype}; save them as uint8, 0 to 255")
    if len(labels.shape) != 1 or labels.dtype.kind not in "iu":
        raise RequestError(
            f"labels in {path} are {labels.dtype} of shape {labels.shape}; save class indices as integers [N]"
        )
    for array in (images, labels):
        if array.bytes != array.stored or min(array.shape, default=0) < 0:
            raise ValueError(
                f"an array of shape {array.shape} has {in_bytes(array.stored)}, not {in_bytes(array.bytes)}"
            )
        if array.bytes > IMAGES_BYTES:
            raise RequestError(
                f"{path} has an array of {in_bytes(array.bytes)}, more than the {in_bytes(IMAGES_BYTES)} that are "
                "read; give a folder of image files, of which a batch is in memory at a time"
            )


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _read_cifar(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    test = path / "test_batch.bin"
    files = [path] if path.is_file() else [test] if test.exists() else sorted(path.glob("data_batch_*.bin"))
    if not files:
        raise RequestError(f"{path} has neither test_batch.bin nor data_batch_*.bin; give {FORMS}")
    for file in files:
        require_at_most(IMAGES_BYTES // len(files), file, "it is no CIFAR-10 file")
    records = np.concatenate([_cifar_records(file) for file in files])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)


def _cifar_records(file: Path) -> Bytes:
    values = np.fromfile(file, dtype=np.uint8)
    if not len(values) or len(values) % CIFAR_RECORD:
        raise RequestError(
            f"{file} has {len(values)} bytes, not {CIFAR_RECORD} a record; it is cut or no CIFAR-10 file"
        )
    return values.reshape(-1, CIFAR_RECORD)


def _check_shapes(path: Path, images: Bytes, labels: NDArray[np.int64], input_size: Size) -> None:
    channels, height, width = input_size
    if images.ndim and len(images) != len(labels):
        raise RequestError(f"{path} has {len(images)} images and {len(labels)} labels, one label an image is needed")
    if not len(labels):
        raise RequestError(f"{path} has no images; give at least one")
    if images.shape[1:] != (height, width, channels):
        found, wanted = list(images.shape), f"[N, {height}, {width}, {channels}]"
        raise RequestError(
            f"images in {path} are {found} but the network takes {wanted}; resize them or give --input-size"
        )


def _check_labels(path: Path, labels: NDArray[np.int64], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise RequestError(
            f"labels in {path} go from {low} to {high} but the network has {classes} classes; "
            f"number them 0 to {classes - 1}"
        )


def _read_folder(path: Path, input_size: Size, classes: int, keep: slice) -> LabelledImages:
    if input_size[0] not in (1, 3):
        raise RequestError(f"image files have 1 or 3 channels, not {input_size[0]}; give a .npz")
    groups = [
        [(file, label) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        for folder, label in _class_folders(path, classes)
    ]
    turns = [entry for turn in zip_longest(*groups) for entry in turn if entry is not None][keep]
    if not turns:
        raise RequestError(f"no images in the sub-folders of {path}; they end in {', '.join(SUFFIXES)}")
    files, labels = zip(*_unbroken(path, turns, input_size), strict=True)
    return LabelledImages(ImageFiles(files, input_size), np.array(labels, dtype=np.int64))


def _unbroken(path: Path, entries: list[tuple[Path, int]], input_size: Size) -> list[tuple[Path, int]]:
    """The entries whose files can be decoded: what is wrong is told now, not in the middle of the evaluation."""
    whole, broken = [], []
    for file, label in entries:
        try:
            _decode(file, input_size)
            whole.append((file, label))
        except _BrokenImage as error:
            broken.append(error)
    if not whole:
        raise RequestError(f"none of the {len(broken)} image files in {path} can be read: {broken[0]}")
    if broken:
        names = ", ".join(error.path.name for error in broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
        warnings.warn(
            f"{len(broken)} of {len(entries)} image files in {path} are broken and left out: {names}", stacklevel=4
        )
    return whole


def _class_folders(path: Path, classes: int) -> list[tuple[Path, int]]:
    """Each class's folder and label, in class order."""
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    numbered = all(folder.name.isdecimal() for folder in folders)
    folders.sort(key=lambda folder: (int(folder.name) if numbered else 0, folder.name))
    if not folders:
        raise RequestError(f"{path} has no sub-folders; give {FORMS}")
    if len(folders) == classes:
        return [(folder, label) for label, folder in enumerate(folders)]
    if len(folders) > classes:
        raise RequestError(
            f"{path} has {len(folders)} sub-folders but the network has {classes} classes; keep one a class"
        )
    if not numbered or int(folders[-1].name) >= classes:
        raise RequestError(
            f"{path} has {len(folders)} sub-folders but the network has {classes} classes; "
            f"give one a class, or name them by class index, 0 to {classes - 1}"
        )
    return [(folder, int(folder.name)) for folder in folders]


def _decode(path: Path, input_size: Size) -> Bytes:
    def pixels(image: Image.Image) -> Bytes:
        _check_size(path, input_size, image)
        colours = image.convert("L" if input_size[0] == 1 else "RGB")
        return np.asarray(colours).reshape(*input_size[1:], input_size[0])

    try:
        return use_image(path, pixels)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's own, and nothing about the image
            raise RequestError(f"{path} cannot be read ({error.strerror}); make it readable") from error
        raise _BrokenImage(path, f"{path} is a broken image ({first_line(error)}); replace it") from error


def use_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """What ``use`` makes of an image file, of which so far the header was read.

    Raises:
        ValueError: it has more than ``PIXELS``.
        OSError, SyntaxError, ValueError: it cannot be read, or is broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it warns where we refuse
            image = Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(first_line(error)) from error
    with image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"{image.height}x{image.width} pixels are more than are read")
        return use(image)


def _check_size(path: Path, input_size: Size, image: Image.Image) -> None:
    width, height = image.size
    if (height, width) != input_size[1:]:
        raise RequestError(
            f"{path} has {height}x{width} pixels but the network takes {input_size[1]}x{input_size[2]}; "
            "resize it or give --input-size"
        )
    if image.mode.startswith(("I", "F")):
        raise RequestError(f"{path} has more than 8 bits a channel; save it with 8")
