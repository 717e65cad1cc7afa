from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import team as script
import torch
from test_recipe import quick, request_

from acq import recipe, trainer
from acq.artifact import load
from acq.errors import RequestError
from acq.flow import Moments
from acq.processes import ALONE, Team, joined, started_by_torchrun
from acq.recipe import prepare

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    for module, name in ((recipe, "_SAVE_EVERY"), (trainer, "_figures"), (trainer, "_image_step")):
        monkeypatch.setattr(module, name, getattr(module, name))  # which the script changes


def together(*words: str, processes: int = 2, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    """``team.py`` in so many processes."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *start, str(HERE / "team.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_are_shared_once_and_pairs_stay_together(count: int, size: int) -> None:
    shares = [Team(rank, size).rows(count) for rank in range(size)]
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
    assert started_by_torchrun() == Team(2, 3)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RequestError, match=r"acq\[processes\]"), joined(torch.device("cpu")):
        pass


def test_more_processes_than_pairs_are_refused() -> None:
    with pytest.raises(RequestError, match="9 processes share batches"):
        prepare(request_(), Team(0, 9))


def test_batch_norms_and_messages(tmp_path: Path) -> None:
    """Three processes, uneven shares: as one process has it (the script compares)."""
    done = together("norms", str(tmp_path), processes=3)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("norms*"))) == 3


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """Every step of every phase, the student's from the state of one process, which two then resume."""
    script.losses(ALONE, tmp_path)
    done = together("losses", str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"losses{size}.json").read_text()) for size in (1, 2))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert {row[0] for row in one} == {"generator", "images", "calibration", "student", "freezing"}
    assert sum(row[0] == "generator" for row in one) == 20
    for (*_, ours), (*_, theirs) in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


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
    done = together("nan", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "training went wrong at images step 2" in done.stderr
    assert load(tmp_path / "run").classes
