"""Size limits for everything that ``acq`` reads.

A file may come from a stranger, so its size is checked before it is read. The limits are far above practical sizes.
``acq.files.tensors`` also checks what a file of tensors declares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from acq.errors import RequestError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SETTINGS_BYTES = 256 * KIB  # all settings take 2 kB, the bits of 1,000 layers another 30 kB
SETTINGS_VALUES = 20_000  # with aliases expanded, because they turn a small file into a large value
DOCUMENT_BYTES = 64 * MIB  # a run's graph takes 1 kB per node, its log 0.2 kB per step
WEIGHTS_BYTES = 16 * GIB  # the largest public classifiers with batch norm take 3 GiB, their optimizers twice that
IMAGES_BYTES = 8 * GIB  # ImageNet's 50,000 validation images at 224 x 224 take 7 GiB
PIXELS = 64 * MIB  # per image file: 8,192 x 8,192
VALUES_AT_ONCE = 1 << 29  # per graph node in one batch: 2 GiB of float32, ten times what ResNets need
FOLDED_VALUES = 1 << 26  # by which all constants of a network may grow when they are computed once: 256 MiB of float32
_BATCH_VALUES = 1_000_000  # values of all images in one batch


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, such as ``1.5 GiB``."""
    units = ((GIB << 10, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    unit, name = next(((unit, name) for unit, name in units if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}"


def require_size(path: Path, most: int, instead: str) -> None:
    """Refuse a file that is too large, without reading it.

    Args:
        path: The file.
        most: The limit in bytes.
        instead: The way out, for the message.

    Raises:
        RequestError: The file is larger.
        OSError: The file does not exist.
    """
    found = path.stat().st_size
    if found > most:
        raise RequestError(f"{path} has {format_bytes(found)}, more than the limit of {format_bytes(most)}; {instead}")


def read_bytes(path: Path, most: int, instead: str) -> bytes:
    """Return a file's content; never more than ``most`` bytes are in memory.

    Args:
        path: The file.
        most: The limit in bytes.
        instead: The way out, for the message.

    Raises:
        RequestError: The file is larger.
        OSError: The file cannot be read.
    """
    require_size(path, most, instead)
    with path.open("rb") as file:
        content = file.read(most + 1)  # the system reports no size for a device or a pipe
    if len(content) > most:
        raise RequestError(f"{path} has more than the limit of {format_bytes(most)}; {instead}")
    return content


def images_at_once(input_size: Sequence[int]) -> int:
    """Return the batch size for inference: about a million input values, so that memory is independent of image size.

    Args:
        input_size: Channels, height and width of one image.
    """
    return max(1, _BATCH_VALUES // math.prod(input_size))
