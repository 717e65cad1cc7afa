"""Whole runs to which something happens; the table in docs/reliability.md has a row for each test here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe import quick, request_, whole_run

from acq import recipe
from acq.core.values import Record
from acq.errors import Interrupted, RequestError, RunError
from acq.recipe import run
from acq.runs import checkpoint
from acq.runs.checkpoint import CheckpointWarning
from acq.runs.folder import STATE, RunFolder, summary_of
from acq.training import losses as distillation
from acq.training import trainer
from acq.training.selection import StudentQuality

KILLS = 20
# One process that forks, with one thread and one trace. Each child is killed after a random time, the run resumed.
KILLED = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path

sys.path[:0] = [sys.argv[1]]
from test_recipe import quick, request_
import pytest
from acq import recipe
from acq.recipe import run

quick(pytest.MonkeyPatch())
recipe._SAVE_EVERY = 0.0
request = request_()


def child(folder, resume, watch=None):
    pid = os.fork()
    if pid == 0:
        try:
            run(request, folder, resume=resume, watch=watch)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return pid


def ended(pid):
    _, status = os.waitpid(pid, 0)
    return status


def digest(folder):
    return hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()


here = Path(sys.argv[2])
clock = time.monotonic()
assert ended(child(here / "whole", False)) == 0
took = time.monotonic() - clock
rng, found = random.Random(0), []
for place in range(int(sys.argv[3])):
    folder = here / str(place)
    pid = child(folder, False)
    time.sleep(rng.uniform(0.02, 0.95) * took)
    os.kill(pid, signal.SIGKILL)
    killed = ended(pid) != 0
    begun = (folder / "config.yaml").exists()
    assert ended(child(folder, begun)) == 0, place
    found.append({"killed": killed, "begun": begun, "same": digest(folder) == digest(here / "whole")})
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The student of a run to which nothing happened."""
    return (whole_run(tmp_path_factory.mktemp("whole") / "run") / "student.safetensors").read_bytes()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at 20 random points: all resume, and end with the same bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), str(KILLS)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == KILLS
    assert all(row["same"] for row in found)
    assert sum(row["killed"] for row in found) > KILLS // 2
    assert sum(row["begun"] for row in found) > KILLS // 2


def stopped_late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with two checkpoints that stopped while its student learned."""
    monkeypatch.setattr(recipe, "_SAVE_EVERY", 0.0)

    def watch(record: Record) -> None:
        if (record.phase, record.step) == ("student", 3):
            raise Interrupted

    with pytest.raises(Interrupted):
        run(request_(), folder, watch=watch)


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_a_damaged_checkpoint(harm: str, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it is used, it is said, and the run ends with the same bytes."""
    folder = tmp_path / "run"
    stopped_late(folder, monkeypatch)
    content = bytearray((folder / STATE).read_bytes())
    if harm == "torn":
        del content[len(content) // 3 :]
    else:
        content[len(content) // 3] ^= 1
    (folder / STATE).write_bytes(content)
    with pytest.warns(CheckpointWarning, match="the one before it is used"):
        run(request_(), folder, resume=True)
    assert (folder / "student.safetensors").read_bytes() == whole


def test_both_checkpoints_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to go on from, and nothing is pretended."""
    folder = tmp_path / "run"
    stopped_late(folder, monkeypatch)
    for path in (folder / STATE, checkpoint.previous(folder / STATE)):
        path.write_bytes(b"0" * 1000)
    with pytest.raises(RequestError, match=r"cannot be read .*--overwrite"):
        run(request_(), folder, resume=True)


@pytest.mark.parametrize("place", ["save_state", "log", "write_samples", "write_summary"])
def test_a_full_disk(place: str, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is being written: a line that says so, and after room was made the run ends with the same bytes."""
    folder = tmp_path / "run"
    monkeypatch.setattr(recipe, "_SAVE_EVERY", 0.0)
    calls = [0]
    real = getattr(RunFolder, place)

    def full(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] >= {"save_state": 4, "log": 2}.get(place, 1):
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(RunFolder, place, full)
    with pytest.raises(RunError, match=r"stopped \(No space left on device\).*go on with --resume"):
        run(request_(), folder)
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(RunFolder, place, real)
    run(request_(), folder, resume=True)
    assert (folder / "student.safetensors").read_bytes() == whole


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 200 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(RunError, match="No space left on device"):
            run(request_(), disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Told before anything is trained; root may write anywhere, so a file stands in the way."""
    (tmp_path / "file").write_text("")
    seen: list[Record] = []
    with pytest.raises(RequestError, match=r"cannot be written|is a file"):
        run(request_(), tmp_path / "file" / "run", watch=seen.append)
    assert not seen


class Poison:
    """A function that gives NaN in place of its result at some of its calls."""

    def __init__(self, real: Any, calls: set[int]) -> None:
        self.real, self.calls, self.count = real, calls, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.count += 1
        loss, parts = self.real(*arguments, **named)
        if self.count in self.calls:
            loss = loss * torch.nan
            parts = dict.fromkeys(parts, loss)
        return loss, parts


@pytest.mark.parametrize(("phase", "name"), [("generator", "total"), ("images", "refine")])
def test_a_loss_that_is_no_number(phase: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back to the last good state, it is said, and the run ends as one that never saw it, but for a smaller rate."""
    poison = Poison(getattr(trainer, name), {3})
    monkeypatch.setattr(trainer, name, poison)
    with pytest.warns(UserWarning, match=rf"went wrong at {phase} step 3: losses .*nan.*; back to step 0 with 0\.3"):
        result = run(request_(), tmp_path / "run")
    assert all(layer.weight.isfinite().all() for _, layer in result.student.layers())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row["values"].values())


def test_a_student_that_goes_wrong_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails with the figures, and no student is left."""
    monkeypatch.setattr(distillation, "feature_match", lambda *_: torch.tensor(torch.nan, requires_grad=True))
    with (
        pytest.warns(UserWarning, match="went wrong at student step 1"),
        pytest.raises(RunError, match=r"student step 1: losses .*features nan; .*student\.learning_rate=0\.005"),
    ):
        run(request_(), tmp_path / "run")
    assert not (tmp_path / "run" / "student.safetensors").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_training_that_ruins_a_student(tmp_path: Path) -> None:
    """Its losses are numbers and its ranges tame, as with a network of depthwise convolutions at the usual rate: the
    calibrated student is kept, it is said with both figures, and a run resumed after the verdict says it too."""
    request = request_(name="relu6", student={"learning_rate": 3.0, "steps": 20})

    def stop(record: Record) -> None:
        if record.phase == "freezing":
            raise Interrupted

    with pytest.raises(Interrupted):
        run(request, tmp_path / "run", watch=stop)
    assert summary_of(tmp_path / "run") is None
    with pytest.warns(UserWarning, match=r"the loss went from 0\.\d+ to .*; the calibrated student is kept"):
        result = run(request, tmp_path / "run", resume=True)
    losses = result.summary["student_loss"]
    assert losses["trained"] > 2 * losses["calibrated"]
    assert losses["kept"] == "calibrated"


def test_a_student_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that agrees with its teacher no more often than a single class would: it is said."""
    monkeypatch.setattr(trainer, "fidelity", lambda *_: StudentQuality(1.0, 3.0))
    monkeypatch.setattr(trainer, "commonest", lambda _: 20.0)
    with pytest.warns(UserWarning, match=r"of no use: it agrees .* on 3\.0 % .* always on 20\.0 %"):
        run(request_(), tmp_path / "run")


def test_weights_that_are_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a gradient that was none: found at the next step."""

    def watch(record: Record) -> None:
        if (record.phase, record.step) == ("generator", 2) and not spoilt:
            spoilt.append(True)
            parameter = next(held[0].generator.parameters())
            parameter.data.fill_(torch.nan)

    spoilt: list[bool] = []
    held: list[trainer.Trainer] = []
    real = recipe.prepare

    def prepare(request: Any, *team: Any) -> trainer.Trainer:
        held.append(real(request, *team))
        return held[-1]

    monkeypatch.setattr(recipe, "prepare", prepare)
    with pytest.warns(UserWarning, match="went wrong at generator step 3"):
        result = run(request_(), tmp_path / "run", watch=watch)
    assert all(layer.weight.isfinite().all() for _, layer in result.student.layers())


def test_a_clock_that_goes_backwards(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock decides nothing: times are those of a clock that only rises."""
    hours = iter(range(10**6, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(hours, 0)))
    run(request_(), tmp_path / "run")
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == whole
