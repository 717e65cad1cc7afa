"""Whole runs to which something happens; the table in docs/reliability.md has a row for each test here."""

from __future__ import annotations

import json
import math
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quick, request_, run, training_

from acq.core.values import Record
from acq.errors import Interrupted, RequestError, RunError
from acq.recipe import Request, Result
from acq.runs import checkpoint
from acq.runs.checkpoint import CheckpointWarning
from acq.runs.names import METRICS, STATE
from acq.training.selection import StudentQuality

pytestmark = pytest.mark.usefixtures("quick_runs")
NETWORK = "all convolutional"  # of two layers, so that runs are short

# One process that forks, with one thread and one trace. Each child kills itself somewhere, another one resumes its run.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from unittest import mock

sys.path[:0] = [sys.argv[1]]
import pytest
import torch
from small_runs import quick, request_, run
from acq.runs import checkpoint, session
from acq.runs.folder import RunFolder

torch.set_num_threads(1)
quick(pytest.MonkeyPatch())
session._SAVE_EVERY = 0.0
request = request_(name=sys.argv[3])
run(request)  # traces, and imports what is imported late


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def at(phase, step):
    return lambda record: die() if (record.phase, record.step) == (phase, step) else None


def between_the_renames_of_the_fifth_checkpoint(path):
    calls.append(path)
    return die() if len(calls) == 5 else previous(path)


calls, previous = [], checkpoint.previous
nothing = mock.patch.object(sys, "argv", sys.argv)
KILLS = {  # a watch, and what is replaced
    "before the first checkpoint": (at("first", 1), nothing),
    "after the first student": (at("generator", 1), nothing),
    "after the generator": (at("images", 1), nothing),
    "after the images": (at("calibration", 1), nothing),
    "after the calibration": (at("student", 1), nothing),
    "after the student": (at("conversion", 1), nothing),
    "amid a checkpoint": (None, mock.patch.object(checkpoint, "previous", between_the_renames_of_the_fifth_checkpoint)),
    "before the summary": (None, mock.patch.object(RunFolder, "write_summary", die)),
}


def child(folder, resume=False, watch=None, patch=nothing):
    pid = os.fork()
    if pid == 0:
        try:
            with patch:
                run(request, folder, resume=resume, watches=() if watch is None else (watch,))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


here, found = Path(sys.argv[2]), {}
for name, (watch, patch) in KILLS.items():
    folder = here / name
    killed = child(folder, watch=watch, patch=patch)
    finished = (folder / "summary.json").exists()
    found[name] = [killed, finished, child(folder, resume=True)]
print(json.dumps(found))
"""


def request(**settings: Any) -> Request:
    return request_(name=NETWORK, **settings)


def student(folder: Path) -> bytes:
    return (folder / "student.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The student of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:  # this comes before the fixture of each test
        quick(patch)
        run(request(), folder)
    return student(folder)


def test_killed_at_any_moment(whole: bytes, tmp_path: Path) -> None:
    """SIGKILL at each boundary of phases, amid a checkpoint and amid results: all resume to the same bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), NETWORK]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    assert all(codes == [-9, False, 0] for codes in found.values()), found
    assert [name for name in found if student(tmp_path / name) != whole] == []


def stopped_late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with two checkpoints that stopped while its student was trained."""
    monkeypatch.setattr("acq.runs.session._SAVE_EVERY", 0.0)

    def watch(record: Record) -> None:
        if (record.phase, record.step) == ("student", 3):
            raise Interrupted

    with pytest.raises(Interrupted):
        run(request(), folder, watches=(watch,))


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_a_damaged_checkpoint(harm: str, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it is used with a warning, and the run ends with the same bytes."""
    folder = tmp_path / "run"
    stopped_late(folder, monkeypatch)
    content = bytearray((folder / STATE).read_bytes())
    if harm == "torn":
        del content[len(content) // 3 :]
    else:
        content[len(content) // 3] ^= 1
    (folder / STATE).write_bytes(content)
    with pytest.warns(CheckpointWarning, match="the one before it is used"):
        run(request(), folder, resume=True)
    assert student(folder) == whole


def test_both_checkpoints_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is refused, and nothing is trained."""
    folder, seen = tmp_path / "run", list[Record]()
    stopped_late(folder, monkeypatch)
    for path in (folder / STATE, checkpoint.previous(folder / STATE)):
        path.write_bytes(b"0" * 1000)
    with pytest.raises(RequestError, match=r"cannot be read .*--overwrite"):
        run(request(), folder, resume=True, watches=(seen.append,))
    assert seen == []


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("acq.runs.folder.RunFolder.save_state", 4),
        ("acq.runs.folder.RunFolder.log", 2),
        ("acq.runs.session.write_samples", 1),
        ("acq.runs.student_file.save", 2),
        ("acq.runs.folder.RunFolder.write_summary", 1),
    ],
)
def test_a_full_disk(place: str, call: int, whole: bytes, tmp_path: Path) -> None:
    """Whichever file is written, one line says that the disk is full, and later the run resumes exactly."""
    folder, calls = tmp_path / "run", list[None]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acq.runs.session._SAVE_EVERY", 0.0)
        real = pkgutil.resolve_name(place)

        def full(*arguments: Any) -> Any:
            calls.append(None)
            if len(calls) >= call:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        patch.setattr(place, full)
        with pytest.raises(RunError, match=r"stopped \(No space left on device\).*continue with --resume"):
            run(request(), folder)
    assert not (folder / "summary.json").exists()
    run(request(), folder, resume=True)
    assert student(folder) == whole


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A run on a file system of 200 kB, where one may be mounted, ends with the line that says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(RunError, match="No space left on device"):
            run(request(), disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is refused before anything is trained; root may write anywhere, so a file stands in the way."""
    (tmp_path / "file").write_text("")
    seen: list[Record] = []
    with pytest.raises(RequestError, match=r"cannot be written|is a file"):
        run(request(), tmp_path / "file" / "run", watches=(seen.append,))
    assert not seen


class Poison:
    """The losses of a step, which are NaN at the third call."""

    def __init__(self, real: Any) -> None:
        self.real, self.calls = real, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        loss, parts = self.real(*arguments, **named)
        return (loss * torch.nan, dict.fromkeys(parts, loss * torch.nan)) if self.calls == 3 else (loss, parts)


def assert_is_sound(result: Result) -> None:
    """Weights and logged losses of a finished run are finite."""
    assert result.folder is not None
    assert all(layer.weight.isfinite().all() for _, layer in result.student.layers())
    rows = [json.loads(line) for line in (result.folder / METRICS).read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row["values"].values())


@pytest.mark.parametrize("phase", ["generator", "images"])
def test_a_loss_that_is_no_number(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes back to the last good state with a warning, and ends with finite weights and losses."""
    module = sys.modules[f"acq.training.{phase}"]
    monkeypatch.setattr(module, "total", Poison(module.total))
    with pytest.warns(
        UserWarning, match=rf"diverged at {phase} step 3: losses .*nan.*; continuing from step 0 with 0\.3"
    ):
        result = run(request(), tmp_path / "run")
    assert_is_sound(result)


def test_a_student_that_goes_wrong_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails with the losses and a way out, and no student is left."""
    monkeypatch.setattr("acq.training.losses.feature_match", lambda *_: torch.tensor(torch.nan, requires_grad=True))
    with (
        pytest.warns(UserWarning, match="diverged at student step 1"),
        pytest.raises(RunError, match=r"student step 1: losses .*features nan; .*--set student\.learning_rate="),
    ):
        run(request(), tmp_path / "run")
    assert not (tmp_path / "run" / "student.safetensors").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_training_that_ruins_a_student(tmp_path: Path) -> None:
    """A student that training made worse is not kept, and the warning and the summary have both losses."""
    words = r"made the student worse, .* its loss went from 0\.\d+ to .*; the (first|calibrated) student is kept"
    with pytest.warns(UserWarning, match=words):
        result = run(request_(name="relu6", student={"learning_rate": 3.0, "steps": 20}), tmp_path / "run")
    losses = result.summary["student_loss"]
    assert losses["trained"] > 2 * losses["calibrated"]
    assert losses["selected"] in ("first", "calibrated")


def test_a_student_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that agrees with its teacher no more often than a single class would is called so."""
    monkeypatch.setattr("acq.training.judging.quality", lambda *_: StudentQuality(1.0, 3.0, 1.0))
    monkeypatch.setattr("acq.training.conversion.majority_share", lambda *_: 20.0)
    with pytest.warns(UserWarning, match=r"of no use: it agrees .* on 3\.0 % .* answers the same on 20\.0 %"):
        run(request(), tmp_path / "run")


def test_weights_that_are_no_numbers() -> None:
    """Weights that became NaN are found at the next step, and training goes back."""
    training = training_(name=NETWORK)
    records = training.run()
    assert [next(records).phase for _ in range(3)] == ["first", "generator", "generator"]
    next(training.context.generator.parameters()).data.fill_(torch.nan)
    with pytest.warns(UserWarning, match="diverged at generator step 3"):
        list(records)
    assert all(layer.weight.isfinite().all() for _, layer in training.context.student.layers())


def test_a_clock_that_goes_backwards(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock decides nothing, because durations are those of a clock that only rises."""
    hours = iter(range(10**6, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(hours, 0)))
    run(request(), tmp_path / "run")
    assert student(tmp_path / "run") == whole
