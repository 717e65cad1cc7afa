"""What every test shares: one thread, repeatable properties, small runs, and the data beside the project."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs
import torch
from hypothesis import settings

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, which jobs in the background ignore
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Tests draw the same numbers whatever ran before them."""
    torch.manual_seed(0)


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test trace equal networks once and measure few images."""
    small_runs.quick(monkeypatch)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small run to which nothing happened; a test that changes it makes a copy."""
    return small_runs.whole_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """``shared("name")`` is a file of the shared data; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{path} is missing")
        return path

    return find
