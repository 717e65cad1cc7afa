"""Constants that are tensors, such as maps of coordinates. They are quantized, so that operators stay in integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers import SIZE, Chain, conv, images
from torch import Tensor, nn
from torch.nn import functional as F

from acq.export.check import check
from acq.export.graph import onnx_model
from acq.network.operators import Role
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import Plan, plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student, quantizers_off
from acq.runs import student_file


class Coordinates(nn.Module):
    """Two maps are made in forward and joined to the values."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(0, 3, w).view(1, 1, 1, w).expand(n, 1, h, w)
        return torch.cat([x, rows, columns], 1)


class Places(nn.Module):
    """A table with a number for each channel and place is added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 8, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Masked(nn.Module):
    """The values of the upper half are taken, half as large."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.cat([torch.full((8, 1), 0.5), torch.zeros(8, 1)]))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mask * x)


class OnImages(nn.Module):
    """The maps are joined to the images."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.stem, self.tail = Coordinates(), conv(5, 3), Chain(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.stem(self.maps(x))))


NETWORKS = {
    "coordinates": lambda: Chain(nn.ReLU(), Coordinates(), conv(10, 8), nn.ReLU()),
    "places": lambda: Chain(nn.ReLU(), Places(), nn.ReLU(), conv(8, 8), nn.ReLU()),
    "mask": lambda: Chain(nn.ReLU(), Masked(), conv(8, 8), nn.ReLU()),
    "images": OnImages,
}


def planned(name: str, bits: str = "w4a4") -> tuple[Plan, Student, nn.Module]:
    torch.manual_seed(0)
    graph = trace(NETWORKS[name]().eval(), SIZE)
    found = plan(graph, replace(NumberFormat.parse(bits, 8), reduce_range=True))
    student = build(graph, found)
    calibrate(student, [images(16)])
    return found, student, graph


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_has_eight_bits_and_its_operator_is_no_float(name: str, bits: str) -> None:
    """Each has a quantizer of its own, at every width. Without quantizers the student is the network."""
    found, student, graph = planned(name, bits)
    tables = [entry for entry in found.nodes if entry.role == Role.CONSTANT]
    assert tables
    assert [entry.output_bits for entry in tables] == [8] * len(tables)
    assert not found.float_nodes
    assert not any(entry.requantize_for for entry in tables)
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(images(4)), graph(images(4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tables_are_saved_and_exported(name: str, bits: str, tmp_path: Path) -> None:
    """The loaded student and the file give the student's answers, and every layer of the file runs on integers."""
    _, student, _ = planned(name, bits)
    convert_to_integers(student.eval())
    student_file.save(student, tmp_path, {})
    torch.testing.assert_close(student_file.load(tmp_path)(images(4)), student(images(4)), rtol=0, atol=0)
    onnx.save(onnx_model(student), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(32, SIZE, 5))
    assert found.integer == found.layers
    assert found.optimised.agreement > 90


def test_images_with_maps_keep_the_images_bits() -> None:
    """The first layer takes 8 bits, and has those of the first."""
    found, _, _ = planned("images")
    (joined,) = [entry for entry in found.nodes if entry.role == Role.CONCAT]
    assert joined.output_bits == 8
    assert next(entry for entry in found.nodes if entry.role == Role.CONVOLUTION).weight_bits == 8


class Encoded(nn.Module):
    """Places are added to what only a norm over channels reads."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.norm = Places(), nn.LayerNorm([8, 16, 16])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.places(x))


def test_tables_between_operators_in_float_stay_floats() -> None:
    """Nothing is gained by a grid there."""
    graph = trace(Chain(nn.ReLU(), Encoded(), conv(8, 8)).eval(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    names = [module.name for _, module in student.modules_in_order() if isinstance(module, ActivationQuantizer)]
    assert not any("table" in name for name in names)
    for options in ({"placement": "relu-only"}, {"format": NumberFormat(4, None)}):
        graph = trace(NETWORKS["places"]().eval(), SIZE)
        found = plan(graph, **{"format": NumberFormat(4, 4), **options})  # type: ignore[arg-type]
        assert not any(entry.output_bits for entry in found.nodes if entry.role == Role.CONSTANT)


def test_a_constant_of_one_value_is_a_number() -> None:
    """It needs no quantizer, wherever it stands."""

    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor([0.25]))

        def forward(self, x: Tensor) -> Tensor:
            return (self.gain * F.relu(x) + self.shift) / self.gain - (self.shift - x.sigmoid())

    model = Chain(Gained(), conv(8, 8)).eval()
    graph = trace(model, SIZE)
    found = plan(graph, NumberFormat(4, 4))
    assert not [entry for entry in found.nodes if entry.role in (Role.CONSTANT, Role.FLOAT)]
    torch.testing.assert_close(graph(images(3)), model(images(3)))
