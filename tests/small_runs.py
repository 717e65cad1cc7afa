"""Runs of a second or less, for the tests of all rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import SIZE, network, traced
from torch import fx, nn

from acq.config import Config
from acq.core.processes import ALONE, Processes
from acq.core.values import Preprocessing
from acq.network.trace import trace, weights_hash
from acq.recipe import Request, Result, prepare, quantize
from acq.runs.session import Session
from acq.training.loop import Training

KNOWN = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 4, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 24, "batch": 10, "steps": 2},
    "calibration": {"images": 8},
    "student": {
        "steps": 5,
        "batch": 8,
        "learning_rate": 0.001,
        "scale_learning_rate": 0.0003,
        "renew_every": 2,
        "renew_count": 8,
    },
}
TRACES: dict[object, fx.GraphModule] = {}


def traced_once(model: nn.Module, size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a network, unless an equal one was traced before: tracing takes longer than a small run."""
    key = weights_hash(model), size, str(model)
    if key not in TRACES:
        TRACES[key] = trace(model, size)
    return TRACES[key]


def quick(patch: pytest.MonkeyPatch) -> None:
    """Let equal networks be traced once, and few images measure the generator, while ``patch`` lasts."""
    patch.setattr("acq.recipe.trace", traced_once)
    patch.setattr("acq.runs.summary._NEW_IMAGES", 64)


def config_(*changes: dict[str, Any], **settings: Any) -> Config:
    """The settings of a small run with changes laid over them."""
    return Config.create("default", SETTINGS, *changes, settings)


def request_(seed: int = 0, name: str = "residual", **settings: Any) -> Request:
    """A small run of one of the networks of ``helpers``; ``settings`` are laid over those of small runs."""
    config = config_({"seed": seed}, **settings)
    return Request(network(name), KNOWN, config, {"model": name, "checkpoint": None})


def training_(seed: int = 0, name: str = "residual", processes: Processes = ALONE, **settings: Any) -> Training:
    """A small run before its first step; two of them are equal bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acq.recipe.trace", lambda *_: traced(name))
        return prepare(request_(seed, name, **settings), processes).training


def run(request: Request, out: Path | None = None, **options: Any) -> Result:
    """Quantize, and keep the run in the folder ``out`` if one is given; ``options`` are those of a session."""
    return quantize(request, Session(out, **options))


def whole_run(folder: Path) -> Path:
    """Do the small run to which nothing happens, in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        run(request_(), folder)
    return folder
