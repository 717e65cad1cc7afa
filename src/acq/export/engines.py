"""The engines on which a file is checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from acq.errors import RequestError, nearest
from acq.export.engine import Engine
from acq.export.kernels import Kernels, onnxruntime_kernels, openvino_kernels
from acq.export.openvino_engine import OpenVINO

REFERENCE = "onnxruntime"  # a file is kept only if it agrees on this engine


@dataclass(frozen=True)
class Opened:
    """A file on an engine: what the file returns for its input, and the kernels that the engine chose."""

    run: Callable[[np.ndarray], tuple[Tensor, ...]]
    kernels: Kernels


@dataclass(frozen=True)
class EngineKind:
    """An engine: its name in messages, and how it opens a file, which raises RequestError where it cannot."""

    label: str
    open: Callable[[Path], Opened]


def _on_onnxruntime(file: Path) -> Opened:
    return Opened(Engine(file).run, onnxruntime_kernels(file))


def _on_openvino(file: Path) -> Opened:
    engine = OpenVINO(file)
    return Opened(engine.run, openvino_kernels(engine))


# by the name of the package, which --engines takes
ENGINES: Mapping[str, EngineKind] = {
    REFERENCE: EngineKind("ONNX Runtime", _on_onnxruntime),
    "openvino": EngineKind("OpenVINO", _on_openvino),
}


def installed_engines() -> dict[str, EngineKind]:
    """The engines that are installed, the reference first."""
    return {name: kind for name, kind in ENGINES.items() if importlib.util.find_spec(name)}


def require_engines(names: Sequence[str]) -> None:
    """Check that engines are known and installed.

    Raises:
        RequestError: One is not.
    """
    for name in names:
        if name not in ENGINES:
            raise RequestError(f"engine {name!r} is not known{nearest(name, ENGINES)}; give {', '.join(ENGINES)}")
        if name not in installed_engines():
            raise RequestError(f"engine {name} is not installed; install it with pip install {name}")
