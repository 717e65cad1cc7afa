from __future__ import annotations

import ctypes
import platform
import resource
import subprocess
import sys

import pytest

from acq.runs.malloc import hand_back_freed_memory, keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings and calls of glibc alone")


def measured(script: str) -> int:
    """What a new process prints: the memory of one that has run other tests lies as chance has it."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


FAULTS = """
import resource, torch
from acq.runs.malloc import keep_freed_memory
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
from acq.runs.malloc import hand_back_freed_memory, keep_freed_memory
held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
assert keep_freed_memory()
hand_back_freed_memory()
torch.ones({numbers})
before = held()
assert hand_back_freed_memory()
print(before - held())
"""


@glibc
def test_freed_tensors_are_taken_again_without_new_pages() -> None:
    size = 40 * 2**20  # above glibc's own limit of 32 MiB, so that each would be mapped anew
    pages = size // resource.getpagesize()
    assert measured(FAULTS.format(numbers=size // 4)) < 5 * pages  # ten times as many were touched


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    assert not hand_back_freed_memory()


@glibc
def test_what_was_kept_can_be_handed_back() -> None:
    """Most of 200 MB that were freed and kept leaves the process."""
    assert measured(HANDED_BACK.format(numbers=50_000_000)) > 150e6
