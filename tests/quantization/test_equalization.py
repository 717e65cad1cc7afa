from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from helpers import NETWORKS, Chain, images, student_of
from torch import Tensor, nn

from acq.export.check import check
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize, relative_scales
from acq.quantization.formats import NumberFormat
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.rounding import round_layers
from acq.quantization.student import Student, quantizers_off
from acq.runs import student_file


def equalized(name: str, bits: str = "w4a4") -> Student:
    student = student_of(name, bits)
    batches = images(32).split(16)
    equalize(student, batches)
    calibrate(student, batches)
    return student


def in_float(student: Student, x: Tensor) -> Tensor:
    with torch.no_grad(), quantizers_off(student):
        return student(x)


class Uneven(nn.Module):
    """A convolution whose channels differ by a factor of 16, a rectifier, and a convolution that consumes them."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        first = nn.Conv2d(8, 8, 3, padding=1)
        with torch.no_grad():
            first.weight.mul_(16.0 ** -torch.linspace(0, 1, 8).view(-1, 1, 1, 1))
            first.bias.mul_(16.0 ** -torch.linspace(0, 1, 8))  # type: ignore[union-attr]
        self.block = nn.Sequential(nn.ReLU(), first, rectifier, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


def uneven(rectifier: nn.Module) -> Student:
    torch.manual_seed(0)
    model = Chain(Uneven(rectifier)).eval()
    graph = trace(model, (3, 16, 16))
    student = build(graph, plan(graph, NumberFormat.parse("w8a3")))
    calibrate(student, images(32).split(16))
    return student


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_float_network_stays_the_same(name: str) -> None:
    """Its logits do not change, whatever is between the layers."""
    student, x = student_of(name), images(32)
    before = in_float(student, x)
    equalize(student, x.split(16))
    torch.testing.assert_close(in_float(student, x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU6(), nn.Identity()], ids=repr)
def test_uneven_channels_lose_less(rectifier: nn.Module) -> None:
    """At 3 bits the output error of the layer behind them falls on other images, with one scale per tensor."""
    student, fresh, batches = uneven(rectifier), images(64, seed=7), images(32).split(16)
    tap = "middle.0.block.3"

    def error() -> Tensor:
        with torch.no_grad():
            found = student.read(fresh, (tap,))[1][tap]
            with quantizers_off(student):
                wanted = student.read(fresh, (tap,))[1][tap]
        return (found - wanted).square().sum() / wanted.square().sum()

    before = error()
    equalize(student, batches)
    calibrate(student, batches)
    after = error()
    assert after < 0.8 * before
    assert all(quantizer.scale.dim() == 0 for _, quantizer in student.activations())


def test_a_channel_is_divided_by_its_own_scale() -> None:
    """Multiples of a channel get the same multiples of its scale, and the largest is 1. The sign does not matter where
    zero lies within the range, a channel of zeros gets 1, and none gets less than 1/64."""
    quantizer = ActivationQuantizer(4)
    values = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 0.5, 2.0, 0.125, 0.0, 1e-6]).view(-1, 1)
    quantizer.set_qparams(torch.tensor(0.1), torch.tensor(0.0))
    found = relative_scales(values * factors, quantizer)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 1.0, 0.0625, 1.0, 1 / 64]))
    quantizer.set_qparams(torch.tensor(0.1), torch.tensor(8.0))
    both = (2 * values - 1) * torch.tensor([1.0, -0.5]).view(-1, 1)
    torch.testing.assert_close(relative_scales(both, quantizer), torch.tensor([1.0, 0.5]), rtol=0.15, atol=0)


def test_kept_tensors_and_tensors_of_eight_bits_stay_as_they_are() -> None:
    """With only such tensors nothing changes, bit for bit."""
    for student, keep in ((student_of("resnet", "w4a8"), ()), (student_of("resnet"), None)):
        before = copy.deepcopy(student.state_dict())
        names = [name for name, _ in student.activations()] if keep is None else keep
        equalize(student, images(32).split(16), keep=names)
        for name, value in student.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_a_tensor_that_is_added_keeps_its_unit() -> None:
    """Additions take shortcuts as before: only the requantizer in front of a layer divides."""
    student = student_of("resnet")
    requantizers = [quantizer for _, quantizer in student.activations() if quantizer.channel_scale is not None]
    taps = [entry.name for entry in student.plan.nodes if entry.requantize_for]
    x = images(32)
    with torch.no_grad(), quantizers_off(student):
        before = student.read(x, taps)[1]
        equalize(student, x.split(16))
        after = student.read(x, taps)[1]
    assert len(requantizers) == len(taps) == 3
    for quantizer in requantizers:
        assert quantizer.channel_scale is not None
        assert quantizer.channel_scale.max() == 1
        assert quantizer.channel_scale.min() < 0.95
    for tap in taps:
        torch.testing.assert_close(after[tap], before[tap], rtol=1e-4, atol=1e-4)


def test_two_runs_are_equal_bit_for_bit() -> None:
    """The global seed does not matter."""
    first = equalized("resnet")
    torch.manual_seed(5)
    second = equalized("resnet")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "name", ["resnet", "shortcut", "clipped", "dense", "relu6", "squeeze-excite", "pre-activation", "two linears"]
)
def test_saved_and_exported_students_divide_too(name: str, tmp_path: Path) -> None:
    """Rounded and in integers, it loads bit for bit, and ONNX Runtime gives its logits; the float file is the float
    network."""
    student, x = equalized(name), images(16, seed=3)
    round_layers(student, images(32).split(16))
    convert_to_integers(student)
    student.eval()
    student_file.save(student, tmp_path, {})
    loaded = student_file.load(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
    model = onnx_model(student)
    sizes = {constant.name: list(constant.dims) for constant in model.graph.initializer}
    rounded = [sizes[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert rounded == [[]] * len(rounded)  # with one scale per channel ONNX Runtime is a hundred times slower
    onnx.save(model, tmp_path / "model.onnx")
    parity = check(tmp_path / "model.onnx", student, x)
    assert parity.plain.equal == 100
    assert parity.optimised.equal >= 90
    assert parity.integer == parity.layers
    onnx.save(onnx_model(student, floating=True), tmp_path / "floating.onnx")
    for _, quantizer in student.activations():
        quantizer.enabled = False
    floating = check(tmp_path / "floating.onnx", student, x)
    assert floating.plain.equal == floating.optimised.equal == 100


class LastAxis(nn.Module):
    """Additions of channels-last tensors that linear layers consume, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = y + self.back(torch.relu(self.wide(y)))
        return (y + self.back(torch.relu(self.wide(y)))).permute(0, 3, 1, 2)


def test_values_whose_channels_are_the_last_axis_stay_as_they_are() -> None:
    """A linear layer over positions takes [N, H, W, C]: none of it is divided, whatever the sizes."""
    torch.manual_seed(0)
    model = Chain(nn.MaxPool2d(2), LastAxis()).eval()  # 8 channels on 8 x 8 places
    graph, x = trace(model, (3, 16, 16)), images(32)
    student = build(graph, plan(graph, NumberFormat.parse("w4a4")))
    calibrate(student, x.split(16))
    before = in_float(student, x)
    equalize(student, x.split(16))
    assert torch.equal(in_float(student, x), before)


@pytest.mark.parametrize(("bits", "changes"), [("w4a4", True), ("w4a8", False)])
def test_the_result_says_whether_anything_changed(bits: str, changes: bool) -> None:
    """Ranges must be calibrated again only then."""
    assert equalize(student_of("resnet", bits), images(32).split(16)) is changes


def test_images_are_needed() -> None:
    """No batches are an error."""
    with pytest.raises(ValueError, match="at least one batch"):
        equalize(student_of("resnet"), [])


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet", "layer2.0.conv1"), ("relu6", "middle.1.0"), ("dense", "head.fc")]
)
def test_layers_in_float_keep_their_weights(name: str, layer: str) -> None:
    """Neither their input nor their output is divided, and the float network stays the same."""
    student, x = student_of(name, layers={layer: "float"}), images(32)
    before, wanted = {key: value.clone() for key, value in student.state_dict().items()}, in_float(student, x)
    equalize(student, x.split(16))
    torch.testing.assert_close(in_float(student, x), wanted, rtol=1e-4, atol=1e-4)
    for node in student.graph.nodes:
        if node.op == "get_attr":
            assert torch.equal(student.get_buffer(str(node.target)), before[str(node.target)])
