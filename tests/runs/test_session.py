from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import SIZE
from small_runs import quick, request_, run

from acq.api import evaluate
from acq.config import Config
from acq.core.outputs import Traits
from acq.core.values import Record
from acq.errors import Interrupted, RequestError
from acq.recipe import Request, Result, quantize
from acq.runs.session import Session
from acq.runs.student_file import load_facts

pytestmark = pytest.mark.usefixtures("quick_runs")
NETWORK = "all convolutional"  # of two layers, so that runs are short


def request(seed: int = 0, name: str = NETWORK) -> Request:
    return request_(seed, name)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        run(request(), folder)
    return folder


def stop_at(phase: str, step: int) -> Callable[[Record], None]:
    """A watch that presses Ctrl-C when a record comes."""

    def watch(record: Record) -> None:
        if (record.phase, record.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def fail_at(phase: str, step: int) -> Callable[[Record], None]:
    """A watch that fails when a record comes."""

    def watch(record: Record) -> None:
        if (record.phase, record.step) == (phase, step):
            raise ZeroDivisionError

    return watch


def product(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The student's bytes, and the log of a run without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "student.safetensors").read_bytes(), [{**line, "seconds": 0} for line in lines]


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize(
    ("phase", "step"),
    [("first", 1), ("generator", 2), ("images", 3), ("calibration", 1), ("student", 2), ("conversion", 1)],
)
def test_ctrl_c_in_any_phase_saves_a_run_that_resumes_exactly(
    finished_run: Path, tmp_path: Path, phase: str, step: int
) -> None:
    """An interrupted run says how to continue, and resumed it gives the bytes and figures of a whole run."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=rf"stopped at {phase} step {step} of .*, continue with --resume"):
        run(request(), folder, watches=(stop_at(phase, step),))
    assert not (folder / "summary.json").exists()
    assert not (folder / "student.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = run(request(), folder, resume=True)
    assert product(folder) == product(finished_run)
    expected = json.loads((finished_run / "summary.json").read_text())
    for name in expected.keys() - {"seconds", "peak_memory_mb"}:
        assert result.summary[name] == expected[name], name


def test_a_run_may_be_interrupted_again_and_again(finished_run: Path, tmp_path: Path) -> None:
    """A run that stops in three phases, once between two batches of images, gives the same bytes."""
    folder = tmp_path / "run"
    for phase, step, resume in (("generator", 4, False), ("images", 2, True), ("student", 5, True)):
        with pytest.raises(Interrupted):
            run(request(), folder, resume=resume, watches=(stop_at(phase, step),))
    run(request(), folder, resume=True)
    assert product(folder) == product(finished_run)


@pytest.mark.parametrize(("phase", "step"), [("images", 4), ("student", 3)])
def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    """With a checkpoint after every step, a run that fails is resumed at that step and ends the same."""
    monkeypatch.setattr("acq.runs.session._SAVE_EVERY", 0.0)
    folder, seen = tmp_path / "run", list[Record]()
    with pytest.raises(ZeroDivisionError):
        run(request(), folder, watches=(fail_at(phase, step),))
    run(request(), folder, resume=True, watches=(seen.append,))
    steps = [("images", i) for i in (4, 5, 6)] + [("calibration", 1)]
    steps += [("student", i + 1) for i in range(5)] + [("conversion", 1)]
    assert [(record.phase, record.step) for record in seen] == steps[steps.index((phase, step)) :]
    assert product(folder) == product(finished_run)


def test_a_run_that_fails_before_its_first_checkpoint_starts_again(finished_run: Path, tmp_path: Path) -> None:
    """Resuming a run without a checkpoint equals starting it."""
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run(request(), folder, watches=(fail_at("generator", 1),))
    run(request(), folder, resume=True)
    assert product(folder) == product(finished_run)


def test_a_finished_run_is_returned_as_it_is(finished_run: Path) -> None:
    """Resuming a finished run trains nothing, changes no file and gives its student and summary."""
    before, seen = contents(finished_run), list[Record]()
    result = run(request(), finished_run, resume=True, watches=(seen.append,))
    assert seen == []
    assert contents(finished_run) == before
    assert result.folder == finished_run
    assert result.summary == json.loads((finished_run / "summary.json").read_text())


def test_a_finished_run_gets_its_accuracy_later(finished_run: Path, tmp_path: Path) -> None:
    """Resumed with labelled images, a finished run reports and keeps its accuracy on them."""
    folder, data = tmp_path / "run", tmp_path / "data.npz"
    shutil.copytree(finished_run, folder)
    rng = np.random.default_rng(0)
    np.savez(data, images=rng.integers(0, 256, (20, 16, 16, 3), np.uint8), labels=rng.integers(0, 5, 20))
    figures = quantize(request(), Session(folder, resume=True), data).summary
    assert figures["test_images"] == 20
    assert figures["top1"] == round(evaluate(folder, data), 2)
    assert figures["teacher_top1"] is not None
    assert figures == json.loads((folder / "summary.json").read_text())


def test_a_finished_run_that_lost_its_student_gets_it_back(finished_run: Path, tmp_path: Path) -> None:
    """The student is made again from the checkpoint, with the same bytes."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "student.safetensors").unlink()
    run(request(), folder, resume=True)
    assert product(folder) == product(finished_run)


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("resume", "a run is resumed or overwritten"),
        ("overwrite", "a run is resumed or overwritten"),
        ("tensorboard", "TensorBoard files are kept"),
    ],
)
def test_options_of_a_folder_need_one(option: str, what: str) -> None:
    """What only a run folder can hold is refused without one, before anything is trained."""
    with pytest.raises(RequestError, match=f"{what} in the run folder; give out"):
        Session(**{option: True})


def test_other_settings_and_other_weights_are_not_resumed(tmp_path: Path) -> None:
    """A run continues with the settings and the teacher that it began with, or not at all."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request(), folder, watches=(stop_at("generator", 2),))
    with pytest.raises(RequestError, match=r"another config\.seed; .*or start again with --overwrite"):
        run(request(seed=1), folder, resume=True)
    other = request()
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.01)
    with pytest.raises(RequestError, match=r"another teacher .*; .*--overwrite"):
        run(other, folder, resume=True)
    assert run(request(), folder, resume=True).summary["seed"] == 0


def test_overwriting_starts_again(finished_run: Path, tmp_path: Path) -> None:
    """Nothing of an earlier, interrupted run with other settings is left."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request(seed=1, name="squeeze-excite"), folder, watches=(stop_at("student", 2),))
    run(request(), folder, overwrite=True)
    assert product(folder) == product(finished_run)


def test_a_run_in_memory_gives_the_same_student(finished_run: Path) -> None:
    """A run that keeps nothing makes the student of one that keeps everything, bit for bit."""
    kept, held = run(request(), finished_run, resume=True), run(request())
    assert isinstance(held, Result)
    assert held.folder is None
    images = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(held.student(images), kept.student(images))
    assert not held.student.training


def test_ctrl_c_stops_a_run_in_memory_at_once() -> None:
    """A run without a folder has nothing to save, so Ctrl-C is Python's own KeyboardInterrupt."""
    with pytest.raises(KeyboardInterrupt):
        run(request(), watches=(stop_at("generator", 2),))


def test_every_watch_sees_every_record(tmp_path: Path) -> None:
    """Watches get the same records in order of phases and steps, and records with losses are in the log."""
    seen: tuple[list[Record], list[Record]] = ([], [])
    run(request(), tmp_path / "run", watches=tuple(records.append for records in seen))
    assert seen[0] == seen[1]
    counts = {"first": 1, "generator": 4, "images": 6, "calibration": 1, "student": 5, "conversion": 1}
    expected = [(phase, step + 1) for phase, count in counts.items() for step in range(count)]
    assert [(record.phase, record.step) for record in seen[0]] == expected
    logged = [(line["phase"], line["step"]) for line in product(tmp_path / "run")[1]]
    assert logged == [(record.phase, record.step) for record in seen[0] if record.values]


def test_the_folder_says_what_was_requested(finished_run: Path) -> None:
    """Settings, origin and preprocessing are in ``config.yaml`` and beside the student."""
    settings = yaml.safe_load((finished_run / "config.yaml").read_text())
    reads = settings["config"]["images"]["strokes"] > 0  # random weights may tell drawings apart
    used = request().config.placed("deployable").fitted(Traits(reads=reads))
    assert Config.create("default", settings["config"]) == used
    assert settings["origin"] == {"model": NETWORK, "checkpoint": None}
    assert settings["preprocessing"] == {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    facts = load_facts(finished_run)
    assert facts["config"] == settings["config"]


def test_a_finished_folder_is_complete(finished_run: Path) -> None:
    """The files of the contract are there, and nothing half written."""
    found = {str(file.relative_to(finished_run)) for file in finished_run.rglob("*") if file.is_file()}
    assert found >= {
        "config.yaml", "metrics.jsonl", "student.safetensors", "quantization.json", "summary.json",
        "diagnostics.json", "checkpoint/state.pt", "samples/samples.json", "samples/00-finished.png",
    }  # fmt: skip
    assert not [name for name in found if "partial" in name or name == ".owner"]
