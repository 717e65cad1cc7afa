from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE, network, traced
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from acq import recipe
from acq.config import Config
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.recipe import Request, Result, prepare, run
from acq.runs.tensorboard import board

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 20, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 16, "batch": 8, "steps": 10},
    # so few steps must not harm it
    "student": {"steps": 20, "batch": 8, "calibration_images": 8, "learning_rate": 0.001},
}


def request_() -> Request:
    return Request(
        network("residual"), Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3), Config.create("default", SETTINGS), {}
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_FRESH", 64)
    monkeypatch.setattr(recipe, "trace", lambda *_: traced("residual"))


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Result, EventAccumulator]:
    result = run(request_(), tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0, "scalars": 0, "histograms": 0})
    return result, events.Reload()


def test_losses_images_and_weights_are_there(watched: tuple[Result, EventAccumulator]) -> None:
    """Of every phase what it has, as often as is said."""
    _, events = watched
    tags = events.Tags()
    assert {"generator/classes", "generator/centre", "images/statistics", "student/logits"} <= set(tags["scalars"])
    assert {"generator/images", "images/images"} <= set(tags["images"])
    assert len(events.Images("generator/images")) == 10  # grids of 16
    layers = {tag for tag in tags["histograms"] if tag.startswith("student/")}
    assert len(layers) == len(list(watched[0].student.layers()))
    assert [event.step for event in events.Histograms(sorted(layers)[0])] == list(range(2, 21, 2))
    assert [event.step for event in events.Scalars("student/logits")] == [10, 20]


def test_a_run_that_is_watched_is_the_same_run(watched: tuple[Result, EventAccumulator], tmp_path: Path) -> None:
    """Bit for bit."""
    run(request_(), tmp_path / "alone")
    names = [tmp_path / folder / "student.safetensors" for folder in ("run", "alone")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_picture_of_other_channels_is_left_out(tmp_path: Path) -> None:
    """TensorBoard shows one channel or three."""
    trainer = prepare(request_())
    trainer.preprocessing = Preprocessing((4, *SIZE[1:]), (0.5,) * 4, (0.25,) * 4)
    trainer.generator.forward = lambda condition: torch.zeros(len(condition.label), 4, 8, 8)  # type: ignore[method-assign]
    with board(tmp_path, trainer) as show:
        show(recipe.Record("generator", 20, 20, 1.0, {"classes": 1.0}))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert (events.Tags()["images"], events.Tags()["scalars"]) == ([], ["generator/classes"])


def test_without_the_extra_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what to install, and no run folder is left; nor is there a place without one."""
    with pytest.raises(RequestError, match="out"):
        run(request_(), tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RequestError, match=r"TensorBoard's tensorboard is missing; pip install 'acq\[tens"):
        run(request_(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
