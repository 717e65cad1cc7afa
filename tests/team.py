"""Scenes with several processes, for tests/core/test_processes.py.

``python team.py FOLDER`` forks the processes of every scene, so that torch is imported once. Each scene has a folder
with the exit codes and the last words of its processes. ``python team.py FOLDER waiting`` is one process of torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from helpers import traced
from small_runs import request_, run, training_
from torch import nn

from acq.cli.app import exit_code
from acq.core.processes import Processes, joined
from acq.core.values import Record
from acq.core.whole_batch_norm import over_whole_batches
from acq.training.phase import Phase, StepResult

SECONDS = 100  # after which a process of a scene is ended
STEPS: dict[str, Any] = {  # batches of 10, 10 and 4 images are refined
    "generator": {"steps": 12, "batch": 10},
    "images": {"steps": 3},
    "student": {"steps": 12, "batch": 9},
}
RESUMED = ("first", 1), ("generator", 6), ("images", 5), ("calibration", 1), ("student", 6)
SCENES_ALONE = {**STEPS, "generator": {"steps": 0}}
FEW = {"calibration": {"images": 1}, "student": {"augmentation": 0.1, "renew_count": 1}}


@dataclass
class Watched:
    """A phase whose steps are seen, and may be changed, by a function."""

    phase: Phase
    seen: Callable[[int, float, StepResult], StepResult]
    before: Callable[[int, float], None] = field(default=lambda number, rate: None)

    def __post_init__(self) -> None:
        self.name, self.steps = self.phase.name, self.phase.steps
        self.state, self.restore = self.phase.state, self.phase.restore

    def step(self, number: int, rate: float) -> StepResult:
        self.before(number, rate)
        return self.seen(number, rate, self.phase.step(number, rate))


def losses(
    processes: Processes, folder: Path, name: str = "residual", settings: Mapping[str, Any] = MappingProxyType(STEPS)
) -> None:
    """Write every step's losses. One process keeps its state in each phase, and several continue from that.

    Numbers have double precision: calibration's search and Adam's first steps make much of the last bit of others.
    """
    training, found = training_(name=name, processes=processes, **settings), []
    context = training.context
    torch.set_default_dtype(torch.float64)
    for module in (context.teacher, context.student, *([context.generator] if context.has_generator else [])):
        module.double()
    for name, phase in training.phases.items():

        def seen(number: int, rate: float, result: StepResult, name: str = name) -> StepResult:
            found.append((name, number, {loss: value.item() for loss, value in result.losses.items()}))
            return result

        training.phases[name] = Watched(phase, seen)
    for record in training.run():
        if (record.phase, record.step) in RESUMED:
            start = folder.parent / f"{name}-{context.has_generator}-{record.phase}.pt"
            if processes.size == 1:
                torch.save(training.state(), start)
            else:
                training.restore(torch.load(start))
    if processes.is_main:
        (folder / "losses.json").write_text(json.dumps(found))


def messages(processes: Processes, folder: Path) -> None:
    """Compare batch normalization over this process's rows with one over all, and what is sent with what arrives."""
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3, 4, 4), torch.randn(7, 3, 4, 4)
    whole, parts = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    over_whole_batches(parts)
    here, there = x.clone().requires_grad_(), processes.local(x).clone().requires_grad_()
    (whole(here) * weight).sum().backward()
    (parts(there) * processes.local(weight)).sum().backward()
    processes.sum_gradients(parts.parameters())
    assert here.grad is not None
    torch.testing.assert_close(there.grad, processes.local(here.grad))
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()))
    torch.testing.assert_close(parts.eval()(x), whole.eval()(x))
    assert torch.equal(processes.gather(processes.local(x), 7), x)
    assert processes.any(processes.rank == 1, False) == (True, False)
    message = {"x": x, "name": "a"} if processes.is_main else None
    received = processes.broadcast(message, torch.device("cpu"))
    assert received["name"] == "a"
    assert torch.equal(received["x"], x)
    own = torch.full((2, 3), float(processes.rank)).T
    processes.synchronize([own])
    assert not own.any()


def troubled(processes: Processes, folder: Path) -> None:
    """Process 1 gets a NaN, and later finds a fault that no other sees; batches are too small to share."""
    training = training_(processes=processes, **FEW)
    context, phases = training.context, training.phases

    def poison(number: int, rate: float) -> None:
        if (processes.rank, number, rate) == (1, 1, 1.0):
            next(context.generator.parameters()).data.fill_(torch.nan)

    def doubt(number: int, rate: float, result: StepResult) -> StepResult:
        doubtful = (processes.rank, number, rate) == (1, 2, 1.0)
        return StepResult(result.losses, "a doubt") if doubtful else result

    phases["generator"] = Watched(phases["generator"], lambda number, rate, result: result, poison)
    phases["student"] = Watched(phases["student"], doubt)
    for _ in training.run():
        pass
    torch.save(context.student.state_dict(), folder / f"student{processes.rank}.pt")


def stopped(processes: Processes, folder: Path) -> None:
    """Process 1 gets SIGTERM while the student is trained."""

    def watch(record: Record) -> None:
        if processes.rank == 1 and (record.phase, record.step) == ("student", 11):
            os.kill(os.getpid(), signal.SIGTERM)

    run(request_(student={"steps": 12}), folder / "run", watches=(watch,), processes=processes)


def killed(processes: Processes, folder: Path) -> None:
    """Process 1 is killed while images are refined; the state is saved after each step."""
    pytest.MonkeyPatch().setattr("acq.runs.session._SAVE_EVERY", 0.0)

    def watch(record: Record) -> None:
        if processes.rank == 1 and (record.phase, record.step) == ("images", 2):
            os.kill(os.getpid(), signal.SIGKILL)

    run(request_(), folder / "run", watches=(watch,), processes=processes)


def deserted(processes: Processes, folder: Path) -> None:
    """The main process is killed before its first step, while the other waits for it."""
    if processes.is_main:
        os.kill(os.getpid(), signal.SIGKILL)
    run(request_(), folder / "run", processes=processes)


def waiting(processes: Processes, folder: Path) -> None:
    """While the student is trained, wait until all processes get Ctrl-C."""

    def watch(record: Record) -> None:
        if (record.phase, record.step) == ("student", 3):
            (folder / f"waits{processes.rank}").touch()
            while not (folder / "pressed").exists():
                time.sleep(0.05)

    run(request_(student={"steps": 25}), folder / "run", watches=(watch,), processes=processes)


SCENES: Mapping[str, tuple[int, Callable[[Processes, Path], None]]] = {
    "alone": (1, losses),
    "losses": (2, losses),
    **{
        f"{kind} without {what}": (size, partial(losses, name=name, settings=SCENES_ALONE))
        for what, name in (("generator", "residual"), ("features", "two linears"))
        for kind, size in (("alone", 1), ("losses", 2))
    },
    "messages": (3, messages),
    "troubled": (2, troubled),
    "stopped": (2, stopped),
    "killed": (2, killed),
    "deserted": (2, deserted),
}


def act(name: str, folder: Path) -> None:
    """Fork the processes of a scene, as torchrun would start them, and write how each of them ended."""
    folder.mkdir()
    size, scene = SCENES[name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {key: str(value) for key, value in {**place, "MASTER_PORT": port}.items()}
            played(scene, folder, rank)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "codes.json").write_text(json.dumps(codes))


def played(scene: Callable[[Processes, Path], None], folder: Path, rank: int) -> None:
    """Play a scene in this process, which ends with it."""
    said = os.open(folder / f"said{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.alarm(SECONDS)
    code = 70
    try:
        code = exit_code(lambda: joined_in(scene, folder))
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def joined_in(scene: Callable[[Processes, Path], None], folder: Path) -> None:
    with joined(torch.device("cpu")) as processes:
        scene(processes, folder)


def main(folder: Path, scene: str | None = None) -> int:
    torch.set_num_threads(1)
    pytest.MonkeyPatch().setattr("acq.recipe.trace", lambda *_: traced("residual"))
    if scene == "waiting":
        return exit_code(lambda: joined_in(waiting, folder))
    for network in ("residual", "two linears"):  # once for all scenes
        traced(network)
    for name in SCENES:
        act(name, folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
