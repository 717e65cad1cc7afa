"""Constants that are repeated for each image, between operators that the file has in floating point."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from helpers import SIZE, conv, images, settled, student_from
from torch import Tensor, nn
from torch.nn import functional as F

from acq.export.check import check
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers


class Repeated(nn.Module):
    """A table of positions for each image; behind it stands an operator without a form of its own.

    Args:
        shape: Of the table.
        times: How often each axis is repeated; None as often as there are images.
        late: Whether the number of images is that of a value behind the table.
    """

    def __init__(self, shape: tuple[int, ...], times: tuple[int | None, ...], late: bool) -> None:
        super().__init__()
        self.times, self.late = times, late
        self.stem, self.last, self.head = conv(3, 8, stride=2), conv(8, 8), nn.Linear(8, 5)
        self.register_buffer("table", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        counted = x.cumsum(1) if self.late else x
        table = self.table.repeat([counted.shape[0] if count is None else count for count in self.times])
        x = F.relu(self.last((x + table.reshape(-1, 8, 8, 8)).cumsum(2) / 8))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("shape", "times"),
    [
        ((1, 8, 8, 8), (None, 1, 1, 1)),
        ((1, 4, 8, 4), (None, 2, 1, 2)),
        ((8, 8, 8), (None, 1, 1, 1)),
        ((8, 8), (None, 8, 1)),
    ],
    ids=["map", "map of parts", "map without an axis", "rows"],
)
def test_a_table_is_repeated_for_each_image(
    shape: tuple[int, ...], times: tuple[int | None, ...], late: bool, tmp_path: Path
) -> None:
    """The file means the same for any number of images, on both engines."""
    student = student_from(trace(settled(Repeated(shape, times, late)), SIZE), "w8a8")
    convert_to_integers(student.eval())
    model = onnx_model(student)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(33, SIZE, 5))
    assert found.openvino is not None
    for match in (found.plain, found.optimised, found.openvino.match):
        assert match.agreement == 100
        assert match.difference < 0.05
