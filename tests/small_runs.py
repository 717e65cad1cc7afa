"""Runs of a second or less, for the tests of all rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE, network, traced
from torch import fx, nn

from acq.config import Config
from acq.core.processes import ALONE, Processes
from acq.core.scores import Kind
from acq.core.values import Preprocessing, Record
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
JUDGED = 32  # images that judge students in quick runs
TRACES: dict[object, fx.GraphModule] = {}


def traced_once(
    model: nn.Module, size: tuple[int, int, int], outputs: str | None = None, kinds: tuple[Kind, ...] = ()
) -> fx.GraphModule:
    """Trace a network, unless an equal one was traced before: tracing takes longer than a small run."""
    key = weights_hash(model), size, str(model), outputs, kinds
    if key not in TRACES:
        TRACES[key] = trace(model, size, outputs, kinds)
    return TRACES[key]


def quick(patch: pytest.MonkeyPatch) -> None:
    """Let equal networks be traced once, and few images measure generator and students, while ``patch`` lasts."""
    patch.setattr("acq.recipe.trace", traced_once)
    patch.setattr("acq.training.judging._IMAGES", JUDGED)
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
    """Quantize, and keep the run in the folder ``out`` if one is given; ``options`` are those of a session.

    No file is exported unless they say so.
    """
    return quantize(request, Session(out, **{"export": False} | options))


def whole_run(folder: Path) -> Path:
    """Do the small run to which nothing happens, in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        run(request_(), folder)
    return folder


def run_until(training: Training, phase: str, step: int | None = None) -> list[Record]:
    """Do the steps up to ``step`` of a phase, the last one by default."""
    records = []
    for record in training.run():
        records.append(record)
        if (record.phase, record.step) == (phase, record.steps if step is None else step):
            break
    return records


def without_seconds(record: Record) -> tuple[Any, ...]:
    return record.phase, record.step, record.steps, record.values


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """A nested state or value as one flat mapping, without the seconds that a run took."""
    state = vars(state) if is_dataclass(state) else state
    if isinstance(state, Mapping | list | tuple):
        items = state.items() if isinstance(state, Mapping) else enumerate(state)
        return {name: leaf for key, value in items for name, leaf in leaves(value, f"{path}.{key}").items()}
    return {} if path == ".seconds" else {path: state}


def assert_same(first: Any, second: Any) -> None:
    """Two nested states or values must be equal bit for bit."""
    one, other = leaves(first), leaves(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):  # scales are NaN before calibration
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert value == other[name], name
