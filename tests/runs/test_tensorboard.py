from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE
from small_runs import request_, run, training_
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from acq.core.values import Preprocessing, Record
from acq.errors import RequestError
from acq.recipe import Result
from acq.runs.tensorboard import board

pytestmark = pytest.mark.usefixtures("quick_runs")
SETTINGS: dict[str, Any] = {
    "generator": {"steps": 20},
    "images": {"count": 16, "batch": 8, "steps": 10},
    "student": {"steps": 20, "renew_count": 0},
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run with TensorBoard, and where its files are."""
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    return run(request_(**SETTINGS), folder, tensorboard=True), folder / "tensorboard"


def test_losses_images_and_weights_are_there(watched: tuple[Result, Path]) -> None:
    """Every phase writes what it has: losses as they are reported, images and weights ten times."""
    result, folder = watched
    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    assert {"generator/classes", "generator/centre", "images/statistics", "student/logits"} <= set(tags["scalars"])
    assert {"generator/images", "images/images"} <= set(tags["images"])
    assert len(events.Images("generator/images")) == 10  # grids of 16
    layers = {tag for tag in tags["histograms"] if tag.startswith("student/")}
    assert layers == {f"student/{name} in quantization steps" for name, _ in result.student.layers()}
    assert [event.step for event in events.Histograms(min(layers))] == list(range(2, 21, 2))
    assert [event.step for event in events.Scalars("student/logits")] == [10, 20]


def test_a_run_that_is_watched_is_the_same_run(watched: tuple[Result, Path], tmp_path: Path) -> None:
    """TensorBoard changes no bit of the student."""
    run(request_(**SETTINGS), tmp_path / "alone")
    students = [folder / "student.safetensors" for folder in (watched[1].parent, tmp_path / "alone")]
    assert students[0].read_bytes() == students[1].read_bytes()


def test_images_of_other_channels_are_left_out(tmp_path: Path) -> None:
    """TensorBoard shows images of one or three channels, so others are left out and losses are written."""
    training = training_()
    training.context.preprocessing = Preprocessing((4, *SIZE[1:]), (0.5,) * 4, (0.25,) * 4)
    training.context.generator.forward = lambda condition: torch.zeros(len(condition.label), 4, 8, 8)
    with board(tmp_path, training) as show:
        show(Record("generator", 20, 20, 1.0, {"classes": 1.0}))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert (events.Tags()["images"], events.Tags()["scalars"]) == ([], ["generator/classes"])


def test_without_the_extra_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, and no run folder is made."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RequestError, match=r"TensorBoard needs tensorboard; pip install 'acquant\[tensorboard\]'"):
        run(request_(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
