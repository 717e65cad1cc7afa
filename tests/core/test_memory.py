from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from acq.core.memory import hand_back_freed_memory, keep_freed_memory, peak_memory_mb

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")


def measured(script: str) -> int:
    """What a new process prints; the memory of this one depends on the tests that ran before."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


FAULTS = """
import resource, torch
from acq.core.memory import keep_freed_memory
assert keep_freed_memory()
torch.zeros({numbers})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros({numbers})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HANDED_BACK = """
import resource, torch
from pathlib import Path
from acq.core.memory import hand_back_freed_memory, keep_freed_memory
held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
assert keep_freed_memory()
hand_back_freed_memory()
torch.ones({numbers})
before = held()
assert hand_back_freed_memory()
print(before - held())
"""


@glibc
def test_freed_tensors_are_reused_without_new_pages() -> None:
    """Ten tensors of 40 MiB in turn cause fewer page faults than half of one pass over their pages."""
    import resource

    size = 40 * 2**20  # above glibc's own limit of 32 MiB, so that each would be mapped separately
    pages = size // resource.getpagesize()
    assert measured(FAULTS.format(numbers=size // 4)) < 5 * pages  # without the setting it is 10 * pages


@glibc
def test_kept_memory_can_be_handed_back() -> None:
    """Most of 200 MB that were freed and kept leaves the process."""
    assert measured(HANDED_BACK.format(numbers=50_000_000)) > 150e6


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both functions answer False and raise nothing."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    assert not hand_back_freed_memory()


PEAK = """
import torch
from acq.core.memory import peak_memory_mb
cpu = torch.device("cpu")
before = peak_memory_mb(cpu)
torch.ones(100_000_000)
print(peak_memory_mb(cpu) - before)
"""


def test_the_peak_includes_what_was_freed() -> None:
    """A tensor of 400 MB raises a new process's peak by about as much, however large its parent is."""
    assert 380 <= measured(PEAK) <= 480


def no_status(path: Path) -> str:
    raise FileNotFoundError(path)


def test_other_systems_report_their_resource_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``/proc``, the figure is that of ``getrusage``, which is at least as large."""
    pytest.importorskip("resource")
    peak = peak_memory_mb(torch.device("cpu"))
    monkeypatch.setattr(Path, "read_text", no_status)
    other = peak_memory_mb(torch.device("cpu"))
    assert peak is not None
    assert other is not None
    assert other >= peak - 50


def test_a_system_without_the_figure_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither ``/proc`` nor the module ``resource``."""
    monkeypatch.setattr(Path, "read_text", no_status)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb(torch.device("cpu")) is None
