from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import request_, run, training_
from torch import distributed as dist

from acq.core.processes import ALONE, Processes, joined, started_by_torchrun
from acq.core.values import Moments, Record
from acq.errors import RequestError, RunError
from acq.runs.student_file import load

SCRIPT = Path(__file__).parents[1] / "team.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Scenes:
    """What the processes of each scene of ``team.py`` left behind."""

    folder: Path

    def codes(self, scene: str) -> list[int]:
        """The exit code of each process; a signal is negative."""
        found: list[int] = json.loads((self.folder / scene / "codes.json").read_text())
        return found

    def said(self, scene: str, rank: int) -> str:
        return (self.folder / scene / f"said{rank}.txt").read_text()

    def all_said(self, scene: str) -> str:
        return "\n".join(self.said(scene, rank) for rank in range(len(self.codes(scene))))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    folder = tmp_path_factory.mktemp("scenes")
    subprocess.run([sys.executable, SCRIPT, folder], env=ENVIRONMENT, check=True, timeout=600)
    return Scenes(folder)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_row_belongs_to_one_process_and_pairs_stay_together(count: int, size: int) -> None:
    """Every row is computed once, by the process that computes the other row of its pair."""
    shares = [Processes(rank, size).rows(count) for rank in range(size)]
    assert torch.cat(shares).sort().values.tolist() == list(range(count))
    half = (count + 1) // 2
    for rows in map(torch.Tensor.tolist, shares):
        assert all(row + half in rows for row in rows if row < half and row + half < count)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_a_batch_can_be_shared_by_as_many_processes_as_it_has_pairs(count: int, most: int) -> None:
    """``can_share`` is true as long as each process has a row, and always true of one process."""
    assert ALONE.can_share(count)
    assert Processes(0, most).can_share(count)
    assert not Processes(0, most + 1).can_share(count)


def test_a_single_process_copies_and_sends_nothing() -> None:
    """Every operation of one process returns its argument."""
    x = torch.randn(5, 3)
    moments = [Moments(x.mean(0), x.var(0))]
    assert ALONE.local(x) is x
    assert ALONE.gather(x, 5) is x
    assert ALONE.pool_moments(moments, 1.0) == tuple(moments)
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.broadcast({"a": 1}, x.device) == {"a": 1}
    ALONE.synchronize([x])
    ALONE.close()
    assert ALONE.is_main


def test_the_place_of_a_process_comes_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is alone unless the environment has all that torchrun sets."""
    with joined(torch.device("cpu")) as processes:
        assert processes == ALONE
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_by_torchrun() == ALONE  # another launcher
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert started_by_torchrun() == Processes(2, 3)
    assert not started_by_torchrun().is_main


@pytest.mark.parametrize(
    "settings",
    [{"generator": {"batch": 4}}, {"student": {"batch": 3}}, {"images": {"batch": 4}}, {"images": {"count": 34}}],
)
def test_more_processes_than_pairs_are_refused(settings: dict[str, Any]) -> None:
    """The smallest batch of any phase, such as the last one of images, limits the number of processes."""
    with pytest.raises(RequestError, match=r"3 processes share batches .* has 2 pairs of images; start at most 2"):
        training_(processes=Processes(0, 3), **settings)


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_only_a_lost_connection_is_blamed_on_another_process(
    error: RuntimeError, is_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that fails for lack of memory is this process's own error."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(dist, "broadcast", fail)
    with pytest.raises(RunError if is_gone else type(error), match="another process" if is_gone else "memory"):
        Processes(0, 2).synchronize([torch.zeros(1)])


def test_three_processes_compute_and_send_what_one_would(scenes: Scenes) -> None:
    """Batch norms over uneven rows, their gradients, gathered rows and messages equal those of one process."""
    assert scenes.codes("messages") == [0, 0, 0], scenes.all_said("messages")


def test_two_processes_have_the_losses_of_one(scenes: Scenes) -> None:
    """Each loss of each step is the same in double precision, also when two continue what one began."""
    assert scenes.codes("alone") == [0], scenes.said("alone", 0)
    assert scenes.codes("losses") == [0, 0], scenes.all_said("losses")
    one, two = (json.loads((scenes.folder / name / "losses.json").read_text()) for name in ("alone", "losses"))
    assert [row[:2] for row in two] == [row[:2] for row in one]
    assert len(one) == 1 + 12 + 9 + 1 + 12 + 1
    for (*_, theirs), (*_, ours) in zip(two, one, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize("what", ["generator", "features"])
def test_two_processes_have_the_losses_of_one_without(scenes: Scenes, what: str) -> None:
    """So do runs whose images begin as scenes, also of a network without features."""
    names = [f"{kind} without {what}" for kind in ("alone", "losses")]
    for name in names:
        assert set(scenes.codes(name)) == {0}, scenes.all_said(name)
    one, two = (json.loads((scenes.folder / name / "losses.json").read_text()) for name in names)
    assert [row[:2] for row in two] == [row[:2] for row in one]
    assert len(one) == 1 + 9 + 1 + 12 + 1
    for (*_, theirs), (*_, ours) in zip(two, one, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-9)


def test_batches_that_are_too_small_to_share_are_computed_by_all(scenes: Scenes) -> None:
    """One augmented image, one renewed image and one calibration image leave all processes with equal students."""
    assert scenes.codes("troubled") == [0, 0], scenes.all_said("troubled")
    first, second = (torch.load(scenes.folder / "troubled" / f"student{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_all_processes_go_back_where_one_has_a_nan(scenes: Scenes) -> None:
    """A NaN in the generator of one process sends all of them back, once."""
    for rank in range(2):
        found = re.findall(
            r"diverged at generator step 2: .* nan.*; continuing from step 0", scenes.said("troubled", rank)
        )
        assert len(found) == 1


def test_all_processes_go_back_where_one_sees_a_fault(scenes: Scenes) -> None:
    """A fault that a single process sees sends all of them back, and each of them says why."""
    seen, told = (scenes.said("troubled", rank) for rank in (1, 0))
    assert "diverged at student step 3: a doubt; continuing from step 0" in seen
    assert "diverged at student step 3: another process reports it; continuing from step 0" in told


def logged(folder: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["phase"], line["step"]) for line in lines]


@pytest.mark.usefixtures("quick_runs")
def test_a_run_that_two_processes_began_ends_in_one(scenes: Scenes) -> None:
    """A stop signal to one process stops both at one step, and one process continues without repeating any."""
    assert scenes.codes("stopped") == [130, 130]
    assert "stopped at student step 11 of 12; the state is saved in" in scenes.said("stopped", 0)
    folder = scenes.folder / "stopped" / "run"
    before = logged(folder)
    assert before[-1] == ("student", 10)
    run(request_(student={"steps": 12}), folder, resume=True)
    assert logged(folder) == [*before, ("student", 12)]
    assert load(folder).output.numbers == 5


@pytest.mark.usefixtures("quick_runs")
def test_a_killed_process_ends_the_run(scenes: Scenes) -> None:
    """The main process fails with a line that says so, and the run continues from its last step in one process."""
    code, killed = scenes.codes("killed")
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "failed: another process of the run ended or does not answer" in scenes.said("killed", 0)
    folder, records = scenes.folder / "killed" / "run", list[Record]()
    assert not (folder / "summary.json").exists()
    run(request_(), folder, resume=True, watches=(records.append,))
    assert (records[0].phase, records[0].step) == ("images", 2)
    assert load(folder).output.numbers == 5


def test_a_killed_main_process_ends_the_others(scenes: Scenes) -> None:
    """Processes that wait for the main one before the first step end with it."""
    assert scenes.codes("deserted") == [-signal.SIGKILL, 1]
    assert "process 1 of 2: failed: another process of the run ended" in scenes.said("deserted", 1)


def test_ctrl_c_to_torchrun_saves_the_run(tmp_path: Path) -> None:
    """Although torchrun repeats the signal of the terminal, the state is saved and no traceback is printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(SCRIPT), str(tmp_path), "waiting"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=pipe, text=True, start_new_session=True) as started:
        try:
            while started.poll() is None and not all((tmp_path / f"waits{rank}").exists() for rank in range(2)):
                time.sleep(0.1)
            os.killpg(started.pid, signal.SIGINT)
            (tmp_path / "pressed").touch()
            _, said = started.communicate(timeout=100)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
    assert re.search(r"stopped at student step \d+ of 25; the state is saved", said), said
    assert "KeyboardInterrupt" not in said
    assert said.count("Traceback") <= 1, said  # torchrun's own
