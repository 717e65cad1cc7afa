"""A run's state on disk: written whole or not at all, checked by its digest, read without executing anything."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from acq.errors import RequestError, first_line
from acq.files import tensors
from acq.files.limits import WEIGHTS_BYTES, read_bytes

_MARK = b"acq checkpoint 2\n"  # and a SHA-256 of what follows; the first format had neither
_DIGEST_BYTES = hashlib.sha256().digest_size
_ARCHIVE = b"PK"  # with which a file of the first format begins


class CheckpointWarning(UserWarning):
    """The newest checkpoint is damaged, and the one before it was used."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) to ``path``; the file before it is kept beside
    it until the next call.

    The new file is read back before it takes its name: a process killed at any moment, a full disk or one that writes
    something else leaves a whole file.

    Raises:
        OSError: it cannot be written, or not be read back as it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    digest = _digest(content)
    try:
        with partial.open("wb") as file:
            file.writelines((_MARK, digest, content))
            file.flush()
            os.fsync(file.fileno())
        if _digest(_split(partial.read_bytes())[1]) != digest:
            raise OSError(errno.EIO, "what was written reads otherwise", str(partial))
        if path.exists():
            path.replace(previous(path))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(path.name + ".previous")


def exists(path: Path) -> bool:
    """Whether there is one at ``path``, or one before it: a process may be killed between two renames."""
    return path.is_file() or previous(path).is_file()


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote, on the CPU; where that is damaged or gone what was saved before it, with a
    ``CheckpointWarning``.

    Raises:
        RequestError: there is no such file, or neither is a whole checkpoint.
    """
    try:
        return _load(path)
    except RequestError as error:
        try:
            state = _load(previous(path))
        except RequestError:
            raise error from None
        warnings.warn(f"{error}; the one before it is used", CheckpointWarning, stacklevel=2)
        return state


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path}; start the run again with --overwrite")
    try:
        written = read_bytes(path, WEIGHTS_BYTES, "start the run again with --overwrite")
        digest, saved = _split(written)
        if digest != _digest(saved) and not written.startswith(_ARCHIVE):
            raise ValueError("it is not as it was written")
        state = tensors.read_pickle(io.BytesIO(saved))
    except RequestError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, none of them documented
        raise RequestError(
            f"the checkpoint {path} cannot be read ({first_line(error)[:120]}); start the run again with --overwrite"
        ) from error
    if not isinstance(state, dict):
        raise RequestError(f"the checkpoint {path} holds no run; start the run again with --overwrite")
    return state


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest()


def _split(written: bytes) -> tuple[bytes, bytes]:
    """The digest that a file holds and what it is of; no digest and all of it where it has no mark."""
    if not written.startswith(_MARK):
        return b"", written
    start = len(_MARK) + _DIGEST_BYTES
    return written[len(_MARK) : start], written[start:]
