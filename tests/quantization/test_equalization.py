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
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import _ratio, equalize
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import NumberFormat, plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.rounding import round_layers
from acq.quantization.student import Student, build, quantizers_off
from acq.runs import student_file as artifact


def equalized(name: str, bits: str = "w4a4") -> Student:
    student = student_of(name, bits)
    batches = images(32).split(16)
    equalize(student, batches)
    calibrate(student, batches)
    return student


def in_floats(student: Student, x: Tensor) -> Tensor:
    with torch.no_grad(), quantizers_off(student):
        return student(x)


class Uneven(nn.Module):
    """A convolution whose channels differ by a factor of 16, rectified, and one that reads them."""

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


def grid_of(student: Student, place: int) -> ActivationQuantizer:
    return list(dict(student.activations()).values())[place]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_float_network_stays_the_same(name: str) -> None:
    """On images that were seen, whatever stands between the layers."""
    student, x = student_of(name), images(32)
    before = in_floats(student, x)
    equalize(student, x.split(16))
    torch.testing.assert_close(in_floats(student, x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU6(), nn.Identity()], ids=repr)
def test_rounding_few_bits_of_uneven_channels_loses_less(rectifier: nn.Module) -> None:
    """At 3 bits the error of what the layer after them gives falls well, on images that nothing saw, though each scale
    is still its tensor's."""
    student, fresh, batches = uneven(rectifier), images(64, seed=7), images(32).split(16)

    def error() -> Tensor:
        with torch.no_grad():
            given = student.read(fresh, ("conv2d_2",))[1]["conv2d_2"]
            with quantizers_off(student):
                wanted = student.read(fresh, ("conv2d_2",))[1]["conv2d_2"]
        return (given - wanted).square().sum() / wanted.square().sum()

    before = error()
    equalize(student, batches)
    calibrate(student, batches)
    after = error()
    assert after < 0.8 * before
    assert all(grid.scale.dim() == 0 for _, grid in student.activations())


def test_a_channel_is_divided_by_its_own_scale() -> None:
    """Channels that are multiples of one another have ratios of the same multiples, the largest one's being 1; the
    sign does not matter where zero lies within the grid, a channel of zeros is left, and none is blown up beyond 64."""
    grid = ActivationQuantizer(4)
    values = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 0.5, 2.0, 0.125, 0.0, 1e-6]).view(-1, 1)
    grid.set_qparams(torch.tensor(0.1), torch.tensor(0.0))
    found = _ratio(values * factors, grid)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 1.0, 0.0625, 1.0, 1 / 64]))
    grid.set_qparams(torch.tensor(0.1), torch.tensor(8.0))
    both = (2 * values - 1) * torch.tensor([1.0, -0.5]).view(-1, 1)
    torch.testing.assert_close(_ratio(both, grid), torch.tensor([1.0, 0.5]), rtol=0.15, atol=0)


def test_what_is_kept_and_what_has_eight_bits_stay_as_they_are() -> None:
    """Bit for bit; every node kept is the same as nothing done."""
    for student, keep in ((student_of("resnet", "w4a8"), ()), (student_of("resnet"), None)):
        before = copy.deepcopy(student.state_dict())
        names = [name for name, _ in student.activations()] if keep is None else keep
        equalize(student, images(32).split(16), keep=names)
        for name, value in student.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_a_value_that_is_added_keeps_its_units() -> None:
    """Sums see shortcuts as they were: only what layers read of them is divided, by the grid itself."""
    student = student_of("resnet")
    narrow = [grid for name, grid in student.activations() if name.endswith("_narrow")]
    taps = [site.node for site in student.plan.sites if site.requantize_for]
    x = images(32)
    with torch.no_grad(), quantizers_off(student):
        before = student.read(x, taps)[1]
        equalize(student, x.split(16))
        after = student.read(x, taps)[1]
    assert narrow
    for grid in narrow:
        assert grid.channel_scale is not None
        assert grid.channel_scale.max() == 1
        assert grid.channel_scale.min() < 0.95
    for tap in taps:
        torch.testing.assert_close(after[tap], before[tap], rtol=1e-4, atol=1e-4)


def test_two_runs_are_equal_bit_for_bit() -> None:
    """Whatever the global seed."""
    first = equalized("resnet")
    torch.manual_seed(5)
    second = equalized("resnet")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unknown operator"}))
def test_the_saved_student_and_the_file_divide_too(name: str, tmp_path: Path) -> None:
    """Rounded and frozen, it loads bit for bit, and ONNX Runtime gives its logits; in floating point the file is the
    float network."""
    student, x = equalized(name), images(16, seed=3)
    round_layers(student, images(32).split(16))
    convert_to_integers(student)
    student.eval()
    artifact.save(student, tmp_path, {})
    loaded = artifact.load(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
    model = onnx_model(student)
    sizes = {constant.name: list(constant.dims) for constant in model.graph.initializer}
    rounded = [sizes[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert rounded == [[]] * len(rounded)  # with a scale a channel ONNX Runtime is a hundred times slower
    onnx.save(model, tmp_path / "model.onnx")
    parity = check(tmp_path / "model.onnx", student, x)
    assert parity.plain.equal == 100
    assert parity.optimised.equal >= 90
    assert parity.integer == parity.layers
    onnx.save(onnx_model(student, floating=True), tmp_path / "floating.onnx")
    for _, grid in student.activations():
        grid.enabled = False
    floating = check(tmp_path / "floating.onnx", student, x)
    assert floating.plain.equal == floating.optimised.equal == 100


class LastAxis(nn.Module):
    """Sums of channels-last values that linear layers read, as in networks of the ConvNeXt kind."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = y + self.back(torch.relu(self.wide(y)))
        return (y + self.back(torch.relu(self.wide(y)))).permute(0, 3, 1, 2)


def test_values_whose_channels_are_the_last_axis_stay_as_they_are() -> None:
    """A linear layer over places reads [N, H, W, C]: nothing of it is divided, whatever the sizes."""
    torch.manual_seed(0)
    model = Chain(nn.MaxPool2d(2), LastAxis()).eval()  # 8 channels on 8 x 8 places
    graph, x = trace(model, (3, 16, 16)), images(32)
    student = build(graph, plan(graph, NumberFormat.parse("w4a4")))
    calibrate(student, x.split(16))
    before = in_floats(student, x)
    equalize(student, x.split(16))
    assert torch.equal(in_floats(student, x), before)


@pytest.mark.parametrize(("bits", "changes"), [("w4a4", True), ("w4a8", False)])
def test_whether_anything_was_divided_is_told(bits: str, changes: bool) -> None:
    """So that ranges are searched again only where they may differ."""
    assert equalize(student_of("resnet", bits), images(32).split(16)) is changes


def test_images_are_needed() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        equalize(student_of("resnet"), [])


def test_a_checkpoint_of_before_has_ratios_of_one() -> None:
    """A state without ratios is taken as one in which nothing was divided."""
    student = student_of("resnet")
    state = {name: value for name, value in student.state_dict().items() if not name.endswith(".channel_scale")}
    assert len(state) < len(student.state_dict())
    other = equalized("resnet")
    other.load_state_dict(state)
    assert all(
        torch.equal(grid.channel_scale, torch.ones_like(grid.channel_scale))
        for _, grid in other.activations()
        if grid.channel_scale is not None
    )
