from __future__ import annotations

import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch

from acq.memory import hand_back_freed_memory, keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc alone")
def test_freed_tensors_are_taken_again_without_new_pages() -> None:
    assert keep_freed_memory()
    size = 40 * 2**20  # above glibc's own limit of 32 MiB, so that each would be mapped anew
    torch.zeros(size // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(size // 4)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 5 * size / resource.getpagesize()  # ten times as many pages were touched


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    assert not hand_back_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a call of glibc alone")
def test_what_was_kept_can_be_handed_back() -> None:
    """Most of 200 MB that were freed and kept leaves the process."""

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    assert keep_freed_memory()
    hand_back_freed_memory()
    torch.ones(50_000_000)
    before = held()
    assert hand_back_freed_memory()
    assert before - held() > 150e6
