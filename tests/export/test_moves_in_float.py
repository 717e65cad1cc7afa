"""Operators that move values and have no form on bytes: what reads them gets bytes all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from helpers import SIZE, Head, conv, images, settled
from torch import Tensor, nn
from torch.nn import functional as F

from acq.export.check import check
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import plan


class PoolWithPlaces(nn.Module):
    """A pool whose places are used, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8, stride=2), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.first(x)), 2, return_indices=True)
        return self.head(F.relu(self.second(x))) + places.float().mean((1, 2, 3)).unsqueeze(1) / 10000


class LargestWithPlace(nn.Module):
    """The largest value of each channel, and where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8, stride=2), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.relu(self.first(x)).flatten(2).max(2)
        return self.head(F.relu(self.second(x))) + places.float().mean(1).unsqueeze(1) / 10000


class PlacesOfTwoAxes(nn.Module):
    """A sequence of cells, each by its row and its column."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8, stride=2), nn.Conv1d(8, 8, 3), nn.Linear(8, 5)
        self.register_buffer("rows", torch.tensor([0, 2, 1, 3, 5, 4, 7, 6]))
        self.register_buffer("columns", torch.tensor([1, 0, 3, 2, 5, 4, 6, 7]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))[:, :, self.rows, self.columns]
        return self.head(F.relu(self.second(x)).mean(2))


@pytest.mark.parametrize("make", [PoolWithPlaces, LargestWithPlace, PlacesOfTwoAxes])
def test_layers_behind_them_run_on_integers(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Moved values are on the grid that they come from, so bytes give them back exactly, on both engines."""
    graph = trace(settled(make()), SIZE)
    student = build(graph, plan(graph, NumberFormat(8, 8, reduce_range=True)))
    calibrate(student, [images(16)])
    convert_to_integers(student)
    model = onnx_model(student.eval())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(64, SIZE, 5))
    assert found.openvino is not None
    assert (found.integer, found.layers) == (found.openvino.integer, found.openvino.layers) == (3, 3)
    for match in (found.plain, found.optimised, found.openvino.match):
        assert match.agreement == 100
        assert match.difference < 1e-3
