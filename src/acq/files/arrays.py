"""Labelled images in arrays: ``.npz`` files and CIFAR-10 binary files.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq.core.pixels import Bytes
from acq.errors import RequestError, first_line
from acq.files.limits import IMAGES_BYTES, format_bytes, require_size
from acq.files.npy import Header, array_of, header_of

CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the red, green and blue planes


def read_npz(path: Path, channels: int) -> tuple[Bytes, NDArray[Any]]:
    """Read the arrays ``images`` and ``labels`` of a ``.npz`` file, without pickles.

    Args:
        path: The file.
        channels: Channels of the network; with one channel, images [N, H, W] become [N, H, W, 1].

    Returns:
        Images uint8 [N, H, W, C] and integer labels [N], [N, K] or [N, H, W]; lengths and sizes are not compared yet.

    Raises:
        RequestError: The file is damaged, too large, or has other arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in ("images", "labels") if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise RequestError(f"{path} has no array {missing[0]!r}; save it with images= and labels=")
            _check_headers(path, header_of(archive, "images"), header_of(archive, "labels"))
            images, labels = array_of(archive, "images"), array_of(archive, "labels")
    except RequestError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, and none of them is documented
        raise RequestError(f"{path} cannot be read as .npz ({first_line(error)}); save it again") from error
    if images.ndim == 3 and channels == 1:
        images = images[..., None]  # [N, H, W] -> [N, H, W, 1]
    return images, labels


def is_cifar_folder(path: Path) -> bool:
    """Return whether a folder holds CIFAR-10 binary files."""
    return any(path.glob("*_batch*.bin"))


def read_cifar(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    """Read one CIFAR-10 binary file, or of a folder ``test_batch.bin`` or otherwise every ``data_batch_*.bin``.

    Returns:
        Images uint8 [N, 32, 32, 3] and labels [N].

    Raises:
        RequestError: There is no such file, or it is too large, cut or no CIFAR-10 file.
    """
    test = path / "test_batch.bin"
    files = [path] if path.is_file() else [test] if test.exists() else sorted(path.glob("data_batch_*.bin"))
    if not files:
        raise RequestError(f"{path} has neither test_batch.bin nor data_batch_*.bin; give the CIFAR-10 folder")
    for file in files:
        require_size(file, IMAGES_BYTES // len(files), "it is no CIFAR-10 file")
    records = np.concatenate([_cifar_records(file) for file in files])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)  # [N, 3, 32, 32] -> [N, 32, 32, 3]


def _check_headers(path: Path, images: Header, labels: Header) -> None:
    """Check types and sizes before any allocation, because a compressed file of 1 kB may declare terabytes."""
    if images.dtype != np.uint8:
        raise RequestError(f"images in {path} are {images.dtype}; save them as uint8, 0 to 255")
    if len(labels.shape) not in (1, 2, 3) or labels.dtype.kind not in "iub":
        raise RequestError(
            f"labels in {path} are {labels.dtype} of shape {labels.shape}; "
            "save class indices as integers [N], labels as 0 and 1, [N, K], or classes per cell, [N, H, W]"
        )
    for array in (images, labels):
        array.require_stored()
        if array.declared > IMAGES_BYTES:
            raise RequestError(
                f"{path} has an array of {format_bytes(array.declared)}, more than the limit of "
                f"{format_bytes(IMAGES_BYTES)}; give a folder of image files, which are read batch by batch"
            )


def _cifar_records(file: Path) -> Bytes:
    """[N, CIFAR_RECORD]: a record per image."""
    values = np.fromfile(file, dtype=np.uint8)
    if not len(values) or len(values) % CIFAR_RECORD:
        raise RequestError(
            f"{file} has {len(values)} bytes, which are no whole records of {CIFAR_RECORD}; download it again"
        )
    return values.reshape(-1, CIFAR_RECORD)
