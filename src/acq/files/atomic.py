"""Atomic writes: a reader sees the old file or the new file, never a part of one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` in one step.

    The folder must exist. If the write fails, ``path`` keeps its previous content and no other file remains.

    Args:
        path: The file to create or replace.
        content: The whole content; text is written as UTF-8 with its line ends unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file there takes the place of ``path`` when the block ends.

    The temporary file has the suffix of ``path``, because some readers choose a format by the suffix. If the block
    raises, the temporary file is removed and ``path`` stays unchanged.

    Args:
        path: The file to create or replace.

    Raises:
        OSError: The file cannot be moved to ``path``.
    """
    # the process number keeps two writers of one path apart
    temporary = _temporary(path, str(os.getpid()))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that killed processes left; only for a process that owns the folder."""
    for leftover in glob.glob(str(_temporary(Path(glob.escape(str(path))), "*"))):
        Path(leftover).unlink(missing_ok=True)


def _temporary(path: Path, process: str) -> Path:
    return path.with_name(f".{path.stem}.partial-{process}{path.suffix}")
