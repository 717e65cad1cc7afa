from __future__ import annotations

import pytest
import torch

from acq.core.device import choose_device
from acq.errors import RequestError


@pytest.mark.parametrize("available", [True, False])
def test_auto_takes_a_cuda_device_where_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    """``auto`` follows what is available, and ``cpu`` does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto").type == ("cuda" if available else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_cuda_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a CUDA device, ``cuda`` is refused with a way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=r"no CUDA device .*--device cpu"):
        choose_device("cuda")


def test_unknown_devices_are_refused() -> None:
    """The message gives the known names."""
    with pytest.raises(RequestError, match="'tpu' is not known; give one of auto, cpu, cuda"):
        choose_device("tpu")
