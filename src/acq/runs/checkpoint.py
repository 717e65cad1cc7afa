"""A run's state on disk: written atomically, verified by its digest, and read without running code from the file."""

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
from acq.files.atomic import remove_leftovers, replacing
from acq.files.limits import WEIGHTS_BYTES, read_bytes
from acq.files.tensors import read_pickle

_MAGIC = b"acq checkpoint 1\n"  # then the SHA-256 of the rest, then the rest, which torch.save writes
_CONTENT = len(_MAGIC) + hashlib.sha256().digest_size  # where the rest begins
_RESTART = "start the run again with --overwrite"


class CheckpointWarning(UserWarning):
    """The newest checkpoint is damaged, so the previous one is used."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint and keep the previous one beside it until the next call.

    The new file is read back before it takes its name. So a killed process, a full disk or a disk that returns other
    bytes leaves a whole checkpoint.

    Args:
        path: The file; its folder is created.
        state: Tensors, numbers, text and containers of them.

    Raises:
        OSError: The file cannot be written, or reads back differently.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).digest()
    remove_leftovers(path)  # each has the size of a checkpoint, and the run owns its folder
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.writelines((_MAGIC, digest, content))
            file.flush()
            os.fsync(file.fileno())
        with temporary.open("rb") as file:
            file.seek(_CONTENT)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise OSError(errno.EIO, "the written file reads back differently", str(temporary))
        if path.exists():
            path.replace(previous(path))


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(path.name + ".previous")


def exists(path: Path) -> bool:
    """Return whether there is a checkpoint at ``path``, or a previous one: a kill may come between two renames."""
    return path.is_file() or previous(path).is_file()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, or the previous one with a ``CheckpointWarning`` if it is damaged or missing.

    Raises:
        RequestError: Neither file is a whole checkpoint.
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
        raise RequestError(f"there is no checkpoint {path}; {_RESTART}")
    try:
        state = read_pickle(io.BytesIO(_verified(read_bytes(path, WEIGHTS_BYTES, _RESTART))))
    except RequestError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, and none of them is documented
        raise RequestError(f"the checkpoint {path} cannot be read ({first_line(error)}); {_RESTART}") from error
    if not isinstance(state, dict):
        raise RequestError(f"the checkpoint {path} holds no run; {_RESTART}")
    return state


def _verified(file: bytes) -> bytes:
    """The content behind the digest.

    Raises:
        ValueError: The file is no checkpoint, or its content has changed since it was written.
    """
    if not file.startswith(_MAGIC):
        raise ValueError("it is not a checkpoint of this version")
    content = file[_CONTENT:]
    if hashlib.sha256(content).digest() != file[len(_MAGIC) : _CONTENT]:
        raise ValueError("its content has changed")
    return content
