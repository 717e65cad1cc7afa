"""Folders in which commands run, and one finished run for all tests of commands."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Answer, acq, enter, quantize
from small_runs import quick


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the network of a user's own and labelled images."""
    enter(tmp_path, monkeypatch)
    quick(monkeypatch)
    yield tmp_path
    sys.modules.pop("tinynet", None)


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The folder of a finished run of the command, and what it answered."""
    folder = tmp_path_factory.mktemp("quantized")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        quick(patch)
        answer = acq(*quantize("--data", "data.npz", "--json", export=True))
    sys.modules.pop("tinynet", None)
    return folder / "run", answer


@pytest.fixture
def run(folder: Path, quantized: tuple[Path, Answer]) -> Path:
    """A finished run in the current folder, named ``run``."""
    shutil.copytree(quantized[0], folder / "run")
    return folder / "run"
