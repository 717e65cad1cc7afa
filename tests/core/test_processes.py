from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import team as script
import torch
from test_recipe import quick, request_
from torch import distributed as dist

from acq import recipe
from acq.core.processes import ALONE, Processes, _guarded, joined, started_by_torchrun
from acq.core.values import Moments
from acq.errors import RequestError, RunError
from acq.recipe import prepare
from acq.runs.student_file import load
from acq.training import trainer
from acq.training.guards import Control

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    changed = (
        (recipe, "_SAVE_EVERY"),
        (recipe, "read"),
        (trainer, "_figures"),
        (trainer, "_image_step"),
        (Control, "see"),
    )
    for place, name in changed:  # by the script
        monkeypatch.setattr(place, name, getattr(place, name))


def begun(*words: str, processes: int) -> subprocess.Popen[str]:
    """``team.py`` in so many processes, as a terminal would start them: in a group of their own."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *start, str(HERE / "team.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def together(*words: str, processes: int = 2, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    """What came of it."""
    with begun(*words, processes=processes) as started:
        try:
            said, complained = started.communicate(timeout=seconds)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(words, started.returncode, said, complained)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_are_shared_once_and_pairs_stay_together(count: int, size: int) -> None:
    shares = [Processes(rank, size).rows(count) for rank in range(size)]
    assert torch.cat(shares).sort().values.tolist() == list(range(count))
    half = (count + 1) // 2
    for rows in map(torch.Tensor.tolist, shares):
        assert all(row + half in rows for row in rows if row < half and row + half < count)


def test_a_team_of_one_changes_and_copies_nothing() -> None:
    x = torch.randn(5, 3)
    moments = [Moments(x.mean(0), x.var(0))]
    assert ALONE.share(x) is x
    assert ALONE.gather(x, 5) is x
    assert ALONE.pool(moments, 1.0) == tuple(moments)
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.tell({"a": 1}, x.device) == {"a": 1}
    assert ALONE.leads


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, it has its place; a team of one starts nothing."""
    with joined(torch.device("cpu")) as team:
        assert team == ALONE
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_by_torchrun() == ALONE  # by something else, which says no place on this machine
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert started_by_torchrun() == Processes(2, 3)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RequestError, match=r"acq\[processes\]"), joined(torch.device("cpu")):
        pass


@pytest.mark.parametrize(
    "settings",
    [{"generator": {"batch": 4}}, {"student": {"batch": 3}}, {"images": {"batch": 4}}, {"images": {"count": 34}}],
)
def test_more_processes_than_pairs_are_refused(settings: dict[str, Any]) -> None:
    """Whichever batch is the smallest; the last one of images may be."""
    with pytest.raises(RequestError, match=r"3 processes share batches .* has 2 pairs of images; start at most 2"):
        prepare(request_(**settings), Processes(0, 3))


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_only_what_others_did_is_told_of_others(error: RuntimeError, gone: bool) -> None:
    """Memory that runs out within a message is this process's own."""

    def fail() -> None:
        raise error

    with pytest.raises(RunError if gone else type(error), match="another process" if gone else "memory"):
        _guarded(fail)


def test_batch_norms_and_messages(tmp_path: Path) -> None:
    """Three processes, uneven shares: as one process has it (the script compares)."""
    done = together("norms", str(tmp_path), processes=3)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("norms*"))) == 3


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """All of 20 steps of every phase, in double precision; amid each two go on from the state of one."""
    script.losses(ALONE, tmp_path)
    done = together("losses", str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"losses{size}.json").read_text()) for size in (1, 2))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    counts = {"generator": 20, "images": 21, "calibration": 1, "student": 20, "freezing": 1}
    assert Counter(row[0] for row in one) == counts
    for (*_, ours), (*_, theirs) in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-8)


def steps(folder: Path) -> list[Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["phase"], line["step"]) for line in lines]


def test_a_run_stopped_in_two_processes_ends_in_one(tmp_path: Path) -> None:
    """And one process writes: the log has each step once."""
    stopped = together("stopped", str(tmp_path / "run"))
    assert stopped.returncode != 0
    assert "stopped at student step 3 of 25" in stopped.stderr
    script.whole_run(ALONE, tmp_path / "run", "nothing")
    assert len(set(steps(tmp_path / "run"))) == len(steps(tmp_path / "run"))
    assert steps(tmp_path / "run")[-1] == ("student", 25)
    assert load(tmp_path / "run").classes


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_to_torchrun_saves(processes: int, tmp_path: Path) -> None:
    """A terminal sends it to all, and torchrun then to each again; the only traceback is torchrun's own."""
    with begun("waiting", str(tmp_path / "run"), processes=processes) as started:
        for _ in range(600):
            if (tmp_path / "run" / "waiting").exists():
                break
            time.sleep(0.1)
        os.killpg(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=60)
    assert re.search(r"stopped at student step \d+ of 25; the state is saved", said), said
    assert "KeyboardInterrupt" not in said
    assert said.count("Traceback") <= 1, said
    script.whole_run(ALONE, tmp_path / "run", "nothing")
    assert load(tmp_path / "run").classes


def test_a_leader_that_dies_before_the_first_step_ends_the_run(tmp_path: Path) -> None:
    """While it reads real images, for which the others wait as long as that takes."""
    clock = time.monotonic()
    died = together("reading", str(tmp_path / "run"))
    assert died.returncode != 0
    assert "process 1 of 2: failed: another process of the run is gone" in died.stderr
    assert time.monotonic() - clock < 120


def ended_well(what: str, folder: Path) -> str:
    """What two processes say that come to a student, whatever happens to them."""
    done = together(what, str(folder))
    assert done.returncode == 0, done.stderr
    assert load(folder).classes
    return done.stderr


def test_parts_of_a_batch_that_not_all_have_a_row_of(tmp_path: Path) -> None:
    """One view, one renewed image, one image to calibrate on: each process has what is too few to share."""
    ended_well("few", tmp_path / "run")


def test_what_one_process_finds_wrong_all_do(tmp_path: Path) -> None:
    """Where processors round otherwise one may see what others do not."""
    said = ended_well("doubt", tmp_path / "run")
    assert "training went wrong at generator step 3: another process says so; back to step 0" in said


def test_a_worker_that_dies_ends_the_run_and_it_goes_on_with_another_number(tmp_path: Path) -> None:
    """Promptly, with the cause, and nothing is lost but the last step."""
    died = together("killed", str(tmp_path / "run"), seconds=120)
    assert died.returncode != 0
    assert "failed: another process of the run is gone" in died.stderr
    assert "SIGKILL" in died.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    script.whole_run(ALONE, tmp_path / "run", "nothing")
    assert load(tmp_path / "run").classes


def test_a_number_that_is_none_in_one_process(tmp_path: Path) -> None:
    """All go back together, once, and the run ends well."""
    assert "training went wrong at images step 2" in ended_well("nan", tmp_path / "run")
