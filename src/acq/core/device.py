"""The device of a run."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from acq.errors import RequestError

Device = Literal["auto", "cpu", "cuda"]


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a CUDA device where there is one.

    Raises:
        RequestError: The name is not known, or ``cuda`` is not available.
    """
    if name not in get_args(Device):
        raise RequestError(f"device {name!r} is not known; give one of {', '.join(get_args(Device))}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RequestError("no CUDA device is available; give --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
