"""Arrays of numpy in an archive: what a header declares is compared with what is there before memory is taken."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq.files.limits import format_bytes

SUFFIX = ".npy"


@dataclass(frozen=True)
class Header:
    """What an array's header declares, and how many bytes the archive has for it.

    Attributes:
        shape: The shape.
        dtype: The type of one value.
        stored: Bytes behind the header.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: int

    @property
    def declared(self) -> int:
        """Bytes that the header declares."""
        return math.prod(self.shape) * self.dtype.itemsize

    def require_stored(self) -> None:
        """Refuse an array that is not exactly as large as its shape.

        Raises:
            ValueError: The archive has more or fewer bytes.
        """
        if self.declared != self.stored or min(self.shape, default=0) < 0:
            raise ValueError(
                f"an array of shape {self.shape} has {format_bytes(self.stored)}, not {format_bytes(self.declared)}"
            )


def header_of(archive: zipfile.ZipFile, name: str) -> Header:
    """Read an array's header.

    Raises:
        ValueError: It is damaged, or of a version whose headers may have gigabytes.
        KeyError: The archive has no such array.
    """
    with archive.open(f"{name}{SUFFIX}") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has a header of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return Header(shape, dtype, archive.getinfo(f"{name}{SUFFIX}").file_size - file.tell())


def array_of(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array whose header has been checked, without pickles."""
    with archive.open(f"{name}{SUFFIX}") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array
