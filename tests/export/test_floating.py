"""Operators without a form of their own are in the file in floating point, and mean the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from helpers import images
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.export.check import Parity, check
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import plan
from acq.quantization.student import Student

SHAPE = (3, 8, 12)


class Between(nn.Module):
    """An operator between two convolutions; the second one reads any number of channels."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.norm, self.operator = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), operator
        channels = self.operator(torch.ones(2, 8, 4, 6)).shape[1]
        self.last, self.head = nn.Conv2d(channels, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(F.relu(self.norm(self.stem(x))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Warp(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        still = torch.tensor([1.0, 0, 0, 0, 1, 0])
        matrix = (0.1 * self.place(x.mean((2, 3))) + still).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


def attention(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    rows = x.flatten(2)
    return x + (rows @ (rows.transpose(1, 2) @ rows / 8).softmax(-1)).view(n, c, h, w)


def images_as_channels(x: Tensor) -> Tensor:
    """The first axis is a multiple of the number of images."""
    n, c, h, w = x.shape
    return x.reshape(n * c, 1, h, w).cumsum(-1).view(n, c, h, w)


def indices(x: Tensor) -> Tensor:
    maxima, places = F.adaptive_max_pool2d(x, (2, 2), return_indices=True)
    return maxima + places.float()


KINDS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "group norm": lambda: nn.GroupNorm(4, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "layer norm": lambda: lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "attention": lambda: attention,
    "spatial transformer": Warp,
    "einsum": lambda: lambda x: torch.einsum("nchw,nkhw->nck", x, x).softmax(-1)[..., None],
    "images as channels": lambda: images_as_channels,
    "slopes": lambda: nn.PReLU(8),
    "powers": lambda: lambda x: F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(3), 2).pow(1 / 3),
    "deviation": lambda: lambda x: x / (x.std((2, 3), keepdim=True) + 0.1),
    "mask": lambda: lambda x: x * (x > x.flatten(2).topk(3, -1).values[..., -1:, None]),
    "zeros like a mask": lambda: lambda x: x + (torch.zeros_like(x > 0.5, dtype=torch.float32) + 0.1).cumsum(1),
    "patches": lambda: lambda x: F.fold(F.unfold(x, 3, padding=1).sin(), x.shape[2:], 3, padding=1),
    "cumulative sum": lambda: lambda x: x.cumsum(1),
    "uneven resize": lambda: lambda x: F.interpolate(x, scale_factor=2.2, mode="bicubic"),
    "counted pads": lambda: lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "mean in double": lambda: lambda x: x + x.mean((2, 3), keepdim=True, dtype=torch.float64).float(),
    "sum in double": lambda: lambda x: x / (1 + x.sum((2, 3), keepdim=True, dtype=torch.float64).float().abs()),
    "factor": lambda: lambda x: torch.add(x, x, alpha=2),
    "indices": lambda: indices,
}


def student_with(operator: Callable[[Tensor], Tensor]) -> Student:
    torch.manual_seed(0)
    graph = trace(Between(operator).eval(), SHAPE)
    student = build(graph, plan(graph, NumberFormat(8, 8, reduce_range=True)))
    calibrate(student, [images(16, SHAPE)])
    convert_to_integers(student)
    return student.eval()


def compared(student: Student, folder: Path) -> Parity:
    onnx.save(onnx_model(student), folder / "model.onnx")
    return check(folder / "model.onnx", student, images(33, SHAPE, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_of_any_kind_means_the_same_in_the_file(kind: str, tmp_path: Path) -> None:
    """Engines give the student's classes for batches of 32 and of 1, and layers around it run on integers."""
    found = compared(student_with(KINDS[kind]()), tmp_path)
    assert found.plain.agreement == 100
    assert found.plain.difference < 1e-3  # a sum in another order may be rounded to the next level
    assert found.optimised.agreement == 100
    assert found.integer >= 2


def test_constants_and_nodes_that_nothing_reads_are_not_written(tmp_path: Path) -> None:
    """The weights of a float operator are in the file once."""
    model = onnx_model(student_with(nn.GroupNorm(4, 8)))
    read = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= read
    assert all(not read.isdisjoint(node.output) or "logits" in node.output for node in model.graph.node)


def test_the_error_names_the_operator_that_cannot_be_translated() -> None:
    """Others around it are not blamed."""
    student = student_with(lambda x: torch.cdist(x.cumsum(1).flatten(2), x.flatten(2))[..., None])
    with pytest.raises(RequestError, match=r"operator \S*cdist.* cannot be exported to ONNX"):
        onnx_model(student)
