"""What the processes of test_processes.py and test_faults.py run; torchrun starts it with what to do and a folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe import TRACES, quick, request_
from torch import nn

from acq import cli, recipe
from acq.core.processes import Processes, joined, over_whole_batches
from acq.core.values import Record
from acq.recipe import Request, follow, prepare, run
from acq.training import guards as soundness
from acq.training import trainer

# three batches of images, of 10, 10 and 4
STEPS = {"generator": {"steps": 20, "batch": 10}, "images": {"steps": 7}, "student": {"steps": 20, "batch": 9}}
RESUMED = ("generator", 10), ("images", 5), ("calibration", 1), ("student", 10)


def exact(parts: dict[str, torch.Tensor], step: int, steps: int) -> dict[str, float]:
    return {name: part.item() for name, part in parts.items()}


def losses(team: Processes, folder: Path) -> None:
    """Every step's losses in double precision: steps of Adam that begin on noise make much of the last bit of single
    precision. Amid each phase, and after calibration, whose search makes much of any, the state is kept, or resumed
    where another number of processes kept it."""
    made = prepare(request_(**STEPS), team)
    torch.set_default_dtype(torch.float64)
    for module in (made.teacher, made.generator, made.student):
        module.double()
    trainer._figures, found = exact, []
    for record in trainer.train(made):
        found.append((record.phase, record.step, record.values))
        if (record.phase, record.step) in RESUMED:
            start = folder / f"{record.phase}.pt"
            if start.exists():
                made.restore(torch.load(start))
            else:
                torch.save(made.state(), start)
    torch.set_default_dtype(torch.float32)
    TRACES.clear()  # which are in double precision now
    if team.leads:
        (folder / f"losses{team.size}.json").write_text(json.dumps(found))


def norms(team: Processes, folder: Path) -> None:
    """A batch normalization over this process's rows, beside one over all."""
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 4)
    whole, parts = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    over_whole_batches(parts)
    here, there = x.clone().requires_grad_(), team.share(x).clone().requires_grad_()
    weight = torch.randn(7, 3, 4, 4)
    (whole(here) * weight).sum().backward()
    (parts(there) * team.share(weight)).sum().backward()
    team.sum_gradients(parts.parameters())
    torch.testing.assert_close(there.grad, team.share(here.grad))
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()))
    torch.testing.assert_close(team.gather(team.share(x), 7), x, rtol=0, atol=0)
    assert team.any(team.rank == 1, False) == (True, False)
    said = team.tell({"x": x, "name": "a"} if team.leads else None, torch.device("cpu"))
    assert said["name"] == "a"
    assert torch.equal(said["x"], x)
    torch.save(x, folder / f"norms{team.rank}")


def whole_run(team: Processes, folder: Path, what: str) -> None:
    """A run in which something happens, mostly to process 1 at the second step of the images or the student."""
    recipe._SAVE_EVERY = 0.0
    few = {"images": {"renew_count": 1, "renew_every": 2}} if what == "few" else {}
    request: Request = request_(
        student={"steps": 25, **({"views": 0.1, "calibration_images": 1} if few else {})}, **few
    )
    advance, see = trainer._image_step, soundness.Control.see

    def harmed(made: trainer.Trainer) -> dict[str, torch.Tensor]:
        if team.rank == 1 and made.step == 1 and not made.cautious:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "nan":
                assert made.draft is not None
                with torch.no_grad():
                    made.draft.logits.fill_(torch.nan)
        return advance(made)

    def doubtful(control: soundness.Control, *values: Any) -> str | None:
        seen.append(None)
        return "doubt" if what == "doubt" and team.rank == 1 and len(seen) == 3 else see(control, *values)

    def watch(record: Record) -> None:
        if (record.phase, record.step) == ("student", 3):
            if what == "stopped":
                os.kill(os.getpid(), signal.SIGTERM)
            if what == "waiting":
                (folder / "waiting").touch()
                time.sleep(5)  # in which Ctrl-C comes

    def reading(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    seen: list[None] = []
    trainer._image_step, soundness.Control.see = harmed, doubtful  # type: ignore[method-assign]
    recipe.read = reading if what == "reading" else recipe.read  # type: ignore[assignment]
    if team.leads:
        run(request, folder, resume=folder.exists(), watch=watch, team=team, data=folder if what == "reading" else None)
    else:
        follow(request, team)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    quick(pytest.MonkeyPatch())
    with joined(torch.device("cpu")) as team:
        if what in ("losses", "norms"):
            {"losses": losses, "norms": norms}[what](team, folder)
        else:
            whole_run(team, folder, what)


if __name__ == "__main__":
    sys.exit(cli._exit_code(main))
