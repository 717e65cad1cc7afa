"""What the processes of test_processes.py and test_faults.py run; torchrun starts it with what to do and a folder."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from test_recipe import TRACES, quick, request_
from torch import nn

from acq import cli, recipe, trainer
from acq.flow import Record
from acq.processes import Team, joined, over_whole_batches
from acq.recipe import Request, follow, prepare, run

STEPS = {"generator": {"steps": 20, "batch": 10}, "images": {"steps": 3}, "student": {"steps": 20, "batch": 9}}


def exact(parts: dict[str, torch.Tensor], step: int, steps: int) -> dict[str, float]:
    return {name: part.item() for name, part in parts.items()}


def losses(team: Team, folder: Path) -> None:
    """Every step's losses in double precision, a student from the state ``calibrated.pt`` where there is one: steps of
    Adam that begin on noise, and the search for ranges, make much of the last bit of single precision."""
    made = prepare(request_(**STEPS), team)
    torch.set_default_dtype(torch.float64)
    for module in (made.teacher, made.generator, made.student):
        module.double()
    trainer._figures, found = exact, []
    for record in trainer.train(made):
        found.append((record.phase, record.step, record.values))
        if record.phase == "calibration":
            start = folder / "calibrated.pt"
            if start.exists():
                made.restore(torch.load(start))
            else:
                torch.save(made.state(), start)
    torch.set_default_dtype(torch.float32)
    TRACES.clear()  # which are in double precision now
    if team.leads:
        (folder / f"losses{team.size}.json").write_text(json.dumps(found))


def norms(team: Team, folder: Path) -> None:
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


def whole_run(team: Team, folder: Path, what: str) -> None:
    """A run in which something happens to process 1, at the second step of the images or the student."""
    recipe._SAVE_EVERY = 0.0
    request: Request = request_(student={"steps": 25})
    advance = trainer._image_step

    def harmed(made: trainer.Trainer) -> dict[str, torch.Tensor]:
        if team.rank == 1 and made.step == 1 and not made.cautious:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "nan":
                assert made.draft is not None
                with torch.no_grad():
                    made.draft.logits.fill_(torch.nan)
        return advance(made)

    def watch(record: Record) -> None:
        if what == "stopped" and (record.phase, record.step) == ("student", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._image_step = harmed
    if team.leads:
        run(request, folder, resume=folder.exists(), watch=watch, team=team)
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
