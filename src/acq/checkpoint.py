"""A run's state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from acq.errors import RequestError


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) to ``path`` atomically.

    A process killed at any moment leaves either the previous file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote, on the CPU.

    Raises:
        RequestError: there is no such file, or it is not a whole checkpoint.
    """
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path}; start the run again with --overwrite")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in many ways, none of them documented
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise RequestError(
            f"the checkpoint {path} cannot be read ({reason}); start the run again with --overwrite"
        ) from error
    if not isinstance(state, dict):
        raise RequestError(f"the checkpoint {path} holds no run; start the run again with --overwrite")
    return state
