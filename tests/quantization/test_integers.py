from __future__ import annotations

import copy

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, conv, images, student_from, student_of
from torch import Tensor, nn

from acq.network.trace import trace
from acq.quantization.integers import _off_ties, _Sums, convert_to_integers
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import QuantLayer, Student


def frozen(name: str, bits: str = "w4a4") -> Student:
    student = student_of(name, bits)
    convert_to_integers(student)
    return student


def sums_of(unit: list[float], reach: int = 200) -> _Sums:
    """Sums of either sign, up to ``reach`` units."""
    units = torch.tensor(unit, dtype=torch.float64)
    return _Sums(torch.zeros_like(units), units, torch.full_like(units, -reach), torch.full_like(units, reach))


def units(student: Student) -> list[tuple[QuantLayer, Tensor]]:
    """Layers that a quantizer stands right before, and weight scale times input scale of each."""
    found = []
    for node, layer in student.placed():
        source = node.args[0]
        if isinstance(layer, QuantLayer) and getattr(source, "op", "") == "call_module":
            quantizer = student.get_submodule(str(source.target))  # type: ignore[union-attr]
            if isinstance(quantizer, ActivationQuantizer):
                found.append((layer, quantizer.scale * layer.weight_quantizer.scale))
    return found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_biases_become_whole_units_of_their_accumulator(name: str) -> None:
    """In every network, of every layer that reads a grid."""
    found = units(frozen(name))
    assert found
    for layer, unit in found:
        if layer.bias is not None:
            steps = layer.bias / unit
            torch.testing.assert_close(steps, steps.round(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_little_changes(name: str) -> None:
    """Scales by 0.2 % at most, weights not at all, biases by half a unit."""
    student = student_of(name)
    before = copy.deepcopy(student)
    convert_to_integers(student)
    for (_, old), (_, new) in zip(before.activations(), student.activations(), strict=True):
        torch.testing.assert_close(new.scale, old.scale, rtol=2.1e-3, atol=0)
        assert new.zero_point == old.zero_point
    for (_, layer), (_, kept) in zip(student.layers(), before.layers(), strict=True):
        assert torch.equal(layer.weight, kept.weight)
    biases = {id(layer): unit for layer, unit in units(student)}
    for (_, layer), (_, kept) in zip(student.layers(), before.layers(), strict=True):
        if layer.bias is not None and kept.bias is not None and id(layer) in biases:
            rounding = 1e-7 * layer.bias.abs()  # of 32-bit floats
            assert ((layer.bias - kept.bias).abs() <= 0.501 * biases[id(layer)] + rounding).all()


def test_no_sum_lies_halfway() -> None:
    """A scale on which one in four sums is a tie moves until none is within a thousandth of a step of one."""
    quantizer = ActivationQuantizer(4)
    quantizer.set_qparams(torch.tensor(0.5), torch.tensor(3.0))
    unit = torch.tensor([0.125, 0.25])
    _off_ties(quantizer, sums_of([0.125, 0.25]))
    sums = torch.arange(-200, 200).view(-1, 1) * unit / quantizer.scale
    inside = sums[(sums > -3.4) & (sums < 12.4)]
    assert (inside - inside.floor() - 0.5).abs().min() > 5e-4
    torch.testing.assert_close(quantizer.scale, torch.tensor(0.5), rtol=2.1e-3, atol=0)


def test_a_channel_that_gives_one_sum_does_not_hide_the_others() -> None:
    """However small its unit is, it counts once; channels that can give too many sums are left alone."""
    quantizer = ActivationQuantizer(4)
    for low, moved in ((0.0, True), (-1e9, False)):
        quantizer.set_qparams(torch.tensor(0.5), torch.tensor(0.0))
        unit = torch.tensor([0.125, 1e-9], dtype=torch.float64)
        _off_ties(quantizer, _Sums(torch.zeros(2), unit, torch.tensor([-200.0, low]), torch.tensor([200.0, 0.0])))
        assert (quantizer.scale != torch.tensor(0.5).log().exp()) == moved


def test_no_level_of_a_wider_grid_lies_halfway() -> None:
    """Where values are held in 8 bits and narrowed to 4, no held value stays within a thousandth of a step of a tie."""
    student = student_of("resnet")
    modules = dict(student.activations())
    representable, narrow = modules["relu_2"], modules["relu_2_narrow"]
    narrow.set_qparams(2 * representable.scale, narrow.zero_point)
    assert from_ties(representable, narrow) == 0
    convert_to_integers(student)
    assert from_ties(representable, narrow) > 5e-4


def from_ties(representable: ActivationQuantizer, narrow: ActivationQuantizer) -> float:
    """How near a value of the wider grid comes to halfway between two of the narrower one, in its steps."""
    return nearest(values_of(representable), narrow)


def values_of(grid: ActivationQuantizer) -> Tensor:
    return (torch.arange(grid.qmax + 1) - grid.zero_point).double() * grid.scale.double()


def nearest(values: Tensor, grid: ActivationQuantizer) -> float:
    """How near one of the values comes to halfway between two levels of a grid, in its steps."""
    levels = values / grid.scale.double()
    inside = levels[(levels > -grid.zero_point - 0.9) & (levels < grid.qmax - grid.zero_point + 0.9)]
    return (inside - inside.floor() - 0.5).abs().min().item()


@pytest.mark.parametrize(
    ("name", "first", "second", "added"),
    [
        ("resnet", "batch_norm_default_2", "relu", "relu_2"),
        ("shortcut", "relu", "batch_norm_default_1", "add_30"),
        ("difference", "batch_norm_default_1", "relu", "sub_5"),
    ],
)
def test_no_sum_of_two_grids_lies_halfway(name: str, first: str, second: str, added: str) -> None:
    """Rectified or not: none of 65,536 stays within 5e-5 of a step of a tie, though before one lay on it."""
    student = difference() if name == "difference" else student_of(name)
    one, other, grid = (dict(student.activations())[place] for place in (first, second, added))
    factor = -2 if name == "difference" else 1

    def sums() -> Tensor:
        return (values_of(one).view(-1, 1) + factor * values_of(other)).flatten()

    greatest = sums().max()
    level = (greatest / grid.scale).floor().clamp(1, grid.qmax - grid.zero_point - 1) + 0.5
    grid.set_qparams((greatest / level).float(), grid.zero_point)
    assert nearest(sums(), grid) < 1e-5
    convert_to_integers(student)
    assert nearest(sums(), grid) > 5e-5


class Difference(nn.Module):
    """Less twice what went around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return torch.sub(self.inner(x), x, alpha=2)


def difference() -> Student:
    torch.manual_seed(0)
    return student_from(trace(Chain(Difference()).eval(), SIZE))


@pytest.mark.parametrize(("name", "place"), [("resnet", "relu"), ("relu6", "hardtanh")])
def test_a_scale_leaves_ties_of_sums_that_were_rectified(name: str, place: str) -> None:
    """Twice a sum's unit makes a tie of every other sum; the layer is not right before the grid."""
    student = student_of(name)
    quantizer = dict(student.activations())[place]
    (_, unit), *_ = units(student)
    quantizer.set_qparams(2 * unit[0], quantizer.zero_point)
    before = quantizer.scale.item()
    convert_to_integers(student)
    assert quantizer.scale.item() != pytest.approx(before, rel=1e-5)


def test_a_scale_without_ties_stays() -> None:
    """To the bit of a 32-bit float."""
    quantizer = ActivationQuantizer(4)
    quantizer.set_qparams(torch.tensor(1.0), torch.tensor(0.0))
    before = quantizer.log_scale.clone()
    _off_ties(quantizer, sums_of([0.3]))  # nearest: 5 * 0.3 = 1.5, which is a tie
    assert not torch.equal(quantizer.log_scale, before)
    quantizer.set_qparams(torch.tensor(1.0), torch.tensor(0.0))
    _off_ties(quantizer, sums_of([1.0]))
    assert torch.equal(quantizer.log_scale, before)


def test_a_bias_of_a_channel_without_weights_fits_32_bits() -> None:
    """Its scale grows until the bias is few enough units; what the layer gives stays."""
    student = student_of("residual")
    layer = next(layer for _, layer in student.layers() if layer.bias is not None)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight[0] = 1e-12
        layer.bias[0] = 3.0
        scale = layer.weight_quantizer.scale.clone()
        scale[0] = 1e-12
        layer.weight_quantizer.set_qparams(scale)
        before = student(images(8))
        convert_to_integers(student)
        after = student(images(8))
    found = {id(each): unit for each, unit in units(student)}[id(layer)]
    assert (layer.bias / found).abs().max() <= 2**30 + 1
    assert layer.bias[0].item() == pytest.approx(3.0, rel=1e-6)
    assert (before.argmax(1) == after.argmax(1)).float().mean() > 0.7
