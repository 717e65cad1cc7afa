"""Devices that a network's code names: those of the trace are forgotten, so that a student computes on its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SIZE, conv, images, settled, student_from
from torch import Tensor, nn
from torch.nn import functional as F

from acq.network.trace import trace
from acq.runs import student_file


class Masked(nn.Module):
    """Adds to a map what its code makes on a device."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made
        self.stem, self.last, self.head = conv(3, 8, stride=2), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.last(x + self.made(x))).mean((2, 3)))


def positions(x: Tensor) -> Tensor:
    """As position encodings begin: places of a mask that hides nothing."""
    shown = ~torch.zeros(x.shape[0], 8, 8).to(device=x.device, dtype=torch.bool)
    return shown.cumsum(1, dtype=torch.float32).unsqueeze(1) / 8


def ramp(x: Tensor) -> Tensor:
    row = torch.linspace(-1, 1, 8, device=x.device).expand(x.shape[0], 1, 8, 8)
    return row.to(device=x.device, dtype=torch.float64).float()


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "positions": positions,
    "ramp": ramp,
    "mask": lambda x: (x > 1).to(x.device, torch.float32),
    "mask of a type": lambda x: (x > 1).type_as(x),
    "mask of no place": lambda x: torch.zeros_like(x > 1, dtype=torch.float32, device=x.device) + 0.1,
    "counts": lambda x: torch.full_like(x, 2, dtype=torch.int64, device=x.device).cumsum(2).float() / 8,
}


@pytest.mark.parametrize("name", MADE)
def test_a_student_names_no_device(name: str, tmp_path: Path) -> None:
    """It can be saved, moved to another device, and answers as before."""
    student = student_from(trace(settled(Masked(MADE[name])), SIZE), "w8a8").eval()
    named = [value for node in student.graph.nodes for value in node.kwargs.values() if isinstance(value, torch.device)]
    assert not named
    student_file.save(student, tmp_path, {})
    x = images(4)
    assert torch.equal(student_file.load(tmp_path).eval().logits(x), student.logits(x))
    assert student.to("meta").logits(x.to("meta")).device.type == "meta"
