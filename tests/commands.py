"""The command ``acq`` in this process, and a network of a user's own that it quantizes in a second."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from acq import cli

CODE = """
import torch
from torch import nn

def layers(width, *rest):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *rest)

def head(width, classes=5):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)

def network(width=4, classes=5):
    print("building")
    torch.manual_seed(0)
    inner = nn.Conv2d(width, width, 3, padding=1)
    return layers(width, inner, nn.BatchNorm2d(width), nn.ReLU(), *head(width, classes))

def without_norms():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head(4))

def without_space():
    return nn.Sequential(nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))

def cells():
    return layers(4)

def of_one_size():
    return layers(4, nn.Flatten(), nn.Linear(4 * 8 * 8, 5))

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.age = network(), nn.Linear(5, 3)
    def forward(self, x):
        x = self.inner(x)
        return {"seen": x.sigmoid(), "age": self.age(x).softmax(1)}

class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
    def forward(self, x):
        return self.inner(x if x.sum() > 0 else -x)
"""
SMALL = [
    "generator.steps=2", "generator.batch=4", "generator.noise_dim=4", "generator.width=8",
    "images.count=16", "images.batch=10", "images.steps=2", "calibration.images=8",
    "student.steps=2", "student.batch=4", "student.learning_rate=0.001", "student.scale_learning_rate=0.0003",
]  # fmt: skip
SIZE = ["--input-size", "3,16,16"]
NETWORK = ["tinynet:network", *SIZE, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]


@dataclass(frozen=True)
class Answer:
    """What a command left behind: its exit code, and what it wrote to either stream."""

    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """The lines on standard error, without what the network prints when it is built."""
        return [line for line in self.err.splitlines() if line != "building"]

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; nothing else may be there."""
        assert self.code == 0, self.err
        assert len(self.out.splitlines()) == 1
        value = json.loads(self.out, parse_constant=pytest.fail)
        assert isinstance(value, dict)
        return value

    def text(self) -> str:
        """The result on standard output, of a command that is done and says nothing beside it."""
        assert (self.code, self.notes) == (0, [])
        return self.out


def acq(*arguments: str) -> Answer:
    """Run the command in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["acq", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert isinstance(ended.value.code, int)
    return Answer(ended.value.code, out.getvalue(), err.getvalue())


def quantize(
    *arguments: str, network: list[str] = NETWORK, small: list[str] = SMALL, export: bool = False
) -> list[str]:
    """Words of a small run into the folder ``run``; ``arguments`` come last, so they count.

    The file at the end, which takes seconds, is left out unless ``export`` is set.
    """
    settings = [word for setting in small for word in ("--set", setting)]
    words = settings if export else [*settings, "--no-export"]
    return ["quantize", *network, "--device", "cpu", "--out", "run", *words, *arguments]


def of(model: str) -> list[str]:
    """The words of another network of the same file."""
    return [f"tinynet:{model}", *NETWORK[1:]]


def refusal(*arguments: str) -> str:
    """The line with which a wrong request is refused; nothing but lines of code may follow, or be written anywhere."""
    before = contents(Path())
    answer = acq(*arguments)
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert all(line.startswith("    ") for line in answer.notes[1:]), answer.err
    assert answer.notes[0].startswith("error: ")
    assert contents(Path()) == before
    return answer.notes[0]


def contents(folder: Path) -> dict[Path, bytes]:
    """All files and folders below a folder."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def weights(width: int = 4) -> dict[str, torch.Tensor]:
    """A state dict that fits ``tinynet:network`` of a width."""
    space: dict[str, Any] = {}
    exec(CODE.replace('print("building")', "pass"), space)
    network = space["network"](width)
    assert isinstance(network, nn.Module)
    return network.state_dict()


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make ``folder``, with the network's file and labelled images, the current one until ``patch`` is undone."""
    folder.mkdir(exist_ok=True)
    patch.chdir(folder)
    patch.setattr(sys, "path", list(sys.path))
    patch.setattr(sys, "dont_write_bytecode", True)
    (folder / "tinynet.py").write_text(CODE)
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=rng.integers(0, 256, (10, 16, 16, 3), np.uint8), labels=np.arange(10) % 5)
