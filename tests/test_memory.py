from __future__ import annotations

import ctypes
import platform
import resource

import pytest
import torch

from acq.memory import keep_freed_memory


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
