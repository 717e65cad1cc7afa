from __future__ import annotations

import copy

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, conv, images, student_from, student_of
from torch import Tensor, nn

from acq.network.trace import trace
from acq.quantization.integers import Values, convert_to_integers, move_off_ties
from acq.quantization.layers import QuantLayer
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student


def integer_student(name: str, bits: str = "w4a4") -> Student:
    student = student_of(name, bits)
    convert_to_integers(student)
    return student


def sums_of(unit: list[float], reach: int = 200) -> Values:
    """Sums of both signs, up to ``reach`` units."""
    units = torch.tensor(unit, dtype=torch.float64)
    return Values(torch.zeros_like(units), units, torch.full_like(units, -reach), torch.full_like(units, reach))


def units(student: Student) -> list[tuple[QuantLayer, Tensor]]:
    """The layers right behind a quantizer, each with weight scale times input scale."""
    found = []
    for node, layer in student.modules_in_order():
        source = node.args[0]
        if isinstance(layer, QuantLayer) and getattr(source, "op", "") == "call_module":
            quantizer = student.get_submodule(str(source.target))  # type: ignore[union-attr]
            if isinstance(quantizer, ActivationQuantizer):
                found.append((layer, quantizer.scale * layer.weight_quantizer.scale))
    return found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_biases_become_whole_units_of_their_accumulator(name: str) -> None:
    """This holds for every layer with a quantized input, in every network."""
    found = units(integer_student(name))
    assert found
    for layer, unit in found:
        if layer.bias is not None:
            steps = layer.bias / unit
            torch.testing.assert_close(steps, steps.round(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_little_changes(name: str) -> None:
    """Scales change by 0.2 % at most, weights not at all, and biases by half a unit."""
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
    """If one in four sums is a tie, the scale moves until none is within a thousandth of a step of one."""
    quantizer = ActivationQuantizer(4)
    quantizer.set_qparams(torch.tensor(0.5), torch.tensor(3.0))
    unit = torch.tensor([0.125, 0.25])
    move_off_ties(quantizer, sums_of([0.125, 0.25]))
    sums = torch.arange(-200, 200).view(-1, 1) * unit / quantizer.scale
    inside = sums[(sums > -3.4) & (sums < 12.4)]
    assert (inside - inside.floor() - 0.5).abs().min() > 5e-4
    torch.testing.assert_close(quantizer.scale, torch.tensor(0.5), rtol=2.1e-3, atol=0)


def test_a_channel_with_one_sum_does_not_hide_the_others() -> None:
    """However small its unit is, it counts once; with too many sums in a channel the scale stays."""
    quantizer = ActivationQuantizer(4)
    for low, moved in ((0.0, True), (-1e9, False)):
        quantizer.set_qparams(torch.tensor(0.5), torch.tensor(0.0))
        unit = torch.tensor([0.125, 1e-9], dtype=torch.float64)
        move_off_ties(quantizer, Values(torch.zeros(2), unit, torch.tensor([-200.0, low]), torch.tensor([200.0, 0.0])))
        assert (quantizer.scale != torch.tensor(0.5).log().exp()) == moved


def test_no_level_lies_halfway_when_requantized() -> None:
    """Of 8-bit values that are requantized to 4 bits, none stays within a thousandth of a step of a tie."""
    student = student_of("resnet")
    quantizers = dict(student.activations())
    stored, requantizer = quantizers["layer1.0.relu_2"], quantizers["layer1.0.relu_2_requantizer"]
    requantizer.set_qparams(2 * stored.scale, requantizer.zero_point)
    assert nearest(levels_of(stored), requantizer) == 0
    convert_to_integers(student)
    assert nearest(levels_of(stored), requantizer) > 5e-4


def levels_of(quantizer: ActivationQuantizer) -> Tensor:
    return (torch.arange(quantizer.qmax + 1) - quantizer.zero_point).double() * quantizer.scale.double()


def nearest(values: Tensor, quantizer: ActivationQuantizer) -> float:
    """The least distance of the values from halfway between two levels, in steps of the quantizer."""
    levels = values / quantizer.scale.double()
    low, high = -quantizer.zero_point - 0.9, quantizer.qmax - quantizer.zero_point + 0.9
    inside = levels[(levels > low) & (levels < high)]
    return (inside - inside.floor() - 0.5).abs().min().item()


@pytest.mark.parametrize(
    ("name", "first", "second", "added"),
    [
        ("resnet", "layer1.0.bn2", "relu", "layer1.0.relu_2"),
        ("shortcut", "middle.0.relu", "middle.0.one.1", "middle.0.add"),
        ("difference", "middle.0.inner.1", "middle.0.relu", "middle.0.sub"),
    ],
)
def test_no_sum_of_two_tensors_lies_halfway(name: str, first: str, second: str, added: str) -> None:
    """Rectified or not, none of 65,536 stays within 5e-5 of a step of a tie, although one lay on a tie before."""
    student = difference() if name == "difference" else student_of(name)
    one, other, quantizer = (dict(student.activations())[place] for place in (first, second, added))
    factor = -2 if name == "difference" else 1

    def sums() -> Tensor:
        return (levels_of(one).view(-1, 1) + factor * levels_of(other)).flatten()

    greatest = sums().max()
    level = (greatest / quantizer.scale).floor().clamp(1, quantizer.qmax - quantizer.zero_point - 1) + 0.5
    quantizer.set_qparams((greatest / level).float(), quantizer.zero_point)
    assert nearest(sums(), quantizer) < 2e-5
    convert_to_integers(student)
    assert nearest(sums(), quantizer) > 5e-5


class Difference(nn.Module):
    """A layer's output minus twice its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return torch.sub(self.inner(x), x, alpha=2)


def difference() -> Student:
    torch.manual_seed(0)
    return student_from(trace(Chain(Difference()).eval(), SIZE))


@pytest.mark.parametrize(("name", "place"), [("resnet", "relu"), ("relu6", "middle.0")])
def test_a_scale_leaves_ties_of_sums_that_were_rectified(name: str, place: str) -> None:
    """Twice a sum's unit makes every other sum a tie; a rectifier is between the layer and the quantizer."""
    student = student_of(name)
    quantizer = dict(student.activations())[place]
    (_, unit), *_ = units(student)
    quantizer.set_qparams(2 * unit[0], quantizer.zero_point)
    before = quantizer.scale.item()
    convert_to_integers(student)
    assert quantizer.scale.item() != pytest.approx(before, rel=1e-5)


def test_a_scale_without_ties_stays() -> None:
    """It does not change by one bit."""
    quantizer = ActivationQuantizer(4)
    quantizer.set_qparams(torch.tensor(1.0), torch.tensor(0.0))
    before = quantizer.log_scale.clone()
    move_off_ties(quantizer, sums_of([0.3]))  # nearest: 5 * 0.3 = 1.5, which is a tie
    assert not torch.equal(quantizer.log_scale, before)
    quantizer.set_qparams(torch.tensor(1.0), torch.tensor(0.0))
    move_off_ties(quantizer, sums_of([1.0]))
    assert torch.equal(quantizer.log_scale, before)


def test_a_bias_of_a_channel_without_weights_fits_32_bits() -> None:
    """Its scale grows until the bias has few enough units, and the layer's output stays."""
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
    assert (layer.bias / found).abs().max() <= 2**30 * (1 + 1e-6)  # in 32-bit floats
    assert layer.bias[0].item() == pytest.approx(3.0, rel=1e-6)
    assert (before.argmax(1) == after.argmax(1)).float().mean() > 0.7


@pytest.mark.parametrize(("name", "layer"), [("resnet", "layer1.*"), ("relu6", "middle.1.0"), ("dense", "head.fc")])
def test_layers_in_float_do_not_change(name: str, layer: str) -> None:
    """The student's other layers become integer, and its logits stay near."""
    student, x = student_of(name, "w4a8", layers={layer: "float"}), images(16)
    constants = [student.get_buffer(str(node.target)).clone() for node in student.graph.nodes if node.op == "get_attr"]
    with torch.no_grad():
        before = student(x)
        convert_to_integers(student)
        assert (student(x) - before).norm() < 0.05 * before.norm()
    after = [student.get_buffer(str(node.target)) for node in student.graph.nodes if node.op == "get_attr"]
    assert all(torch.equal(*pair) for pair in zip(constants, after, strict=True))
    for quantized, unit in units(student):
        assert quantized.bias is not None
        steps = quantized.bias / unit
        torch.testing.assert_close(steps, steps.round(), rtol=1e-5, atol=1e-3)


class Places(nn.Module):
    """A layer behind an index by one table, or by two."""

    def __init__(self, tables: int) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8, stride=2), nn.Conv2d(8, 8, 3) if tables == 1 else nn.Conv1d(8, 8, 3)
        self.register_buffer("rows", torch.tensor([0, 2, 1, 3, 5, 4, 7, 6]))
        self.register_buffer("columns", torch.tensor([1, 0, 3, 2, 5, 4, 6, 7]))
        self.tables = tables

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x[:, :, self.rows] if self.tables == 1 else x[:, :, self.rows, self.columns]
        return self.second(x).flatten(2).mean(2)


@pytest.mark.parametrize("tables", [1, 2])
def test_tables_of_places_do_not_hide_the_input_s_scale(tables: int) -> None:
    """Biases of a layer become whole units also where its input is picked by tables of integers."""
    student = student_from(trace(Places(tables).eval(), SIZE), "w8a8")
    convert_to_integers(student)
    scales = {m.name: m.scale for m in student.modules() if isinstance(m, ActivationQuantizer)}
    layer = next(layer for name, layer in student.layers() if name == "second")
    assert layer.bias is not None
    (scale,) = (value for name, value in scales.items() if "relu" in name)
    steps = layer.bias / (scale * layer.weight_quantizer.scale)
    torch.testing.assert_close(steps, steps.round(), rtol=1e-5, atol=1e-3)
