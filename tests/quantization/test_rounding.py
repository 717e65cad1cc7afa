from __future__ import annotations

import pytest
import torch
from helpers import NETWORKS, images, network, student_of
from torch import Tensor
from torch.nn import functional as F

from acq.quantization import rounding
from acq.quantization.calibration import weight_scale
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.rounding import _order, _unfolded, best_grid, images_that_fit, round_layers, rounded_columns
from acq.quantization.student import QuantConv2d, Student


def problem(groups: int, channels: int, size: int, bits: int) -> tuple[Tensor, Tensor, Tensor, WeightQuantizer]:
    """Weights, their own scales, the energy of correlated inputs, and what has the grid."""
    weight = torch.randn(groups, channels, size, dtype=torch.float64)
    inputs = torch.randn(groups, 500, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
    quantizer = WeightQuantizer(groups * channels, bits)
    scale = weight_scale(weight.view(-1, size).float(), quantizer).view(groups, channels, 1).double()
    return weight, scale, inputs.mT @ inputs / 500, quantizer


def output_error(weight: Tensor, rounded: Tensor, energy: Tensor) -> Tensor:
    return ((weight - rounded) @ energy * (weight - rounded)).sum(2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_rounding_columns_beats_rounding_each_weight(groups: int, bits: int) -> None:
    """The output error is mostly well below that of the nearest integers, and every weight is on the grid."""
    weight, scale, energy, quantizer = problem(groups, 16, 12, bits)
    low, high = quantizer.qmin, quantizer.qmax
    nearest = (weight / scale).round().clamp(low, high) * scale
    rounded = rounded_columns(weight, scale, _order(energy), low, high)
    integers = rounded / scale
    assert torch.allclose(integers, integers.round(), atol=1e-9)
    assert integers.min() >= low - 1e-9
    assert integers.max() <= high + 1e-9
    # a single channel may lose: what is clipped cannot be made up for
    gain = output_error(weight, rounded, energy) / output_error(weight, nearest, energy)
    assert gain.median() < 0.8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searching_the_grid_beats_rounding_on_the_first(bits: int) -> None:
    """Scales, columns and sweeps together err less in every channel than columns alone."""
    weight, scale, energy, quantizer = problem(2, 16, 12, bits)
    chosen, rounded = best_grid(weight, scale, energy, quantizer)
    alone = rounded_columns(weight, scale, _order(energy), quantizer.qmin, quantizer.qmax)
    assert (output_error(weight, rounded, energy) <= output_error(weight, alone, energy) + 1e-12).all()
    assert torch.allclose(rounded / chosen, (rounded / chosen).round(), atol=1e-9)


@pytest.mark.parametrize(("bits", "lost"), [(4, 1.1), (8, 1.5)])
def test_binary_grids_are_kept_to(bits: int, lost: float) -> None:
    """Scales are such as the quantizer can have, weights are whole multiples; at 4 bits next to nothing is lost, at 8
    bits, of a two-hundredth of that error, half as much again.
    """
    weight, scale, energy, quantizer = problem(2, 16, 12, bits)
    power_of_two = WeightQuantizer(32, bits, power_of_two=True)
    _, free = best_grid(weight, scale, energy, quantizer)
    chosen, rounded = best_grid(weight, scale, energy, power_of_two)
    assert torch.equal(power_of_two.representable(chosen), chosen)
    assert torch.equal(rounded / chosen, (rounded / chosen).round())
    assert output_error(weight, rounded, energy).sum() < lost * output_error(weight, free, energy).sum()


def test_the_best_integers_are_found_where_all_can_be_tried() -> None:
    """Of the 64 roundings of three weights to 2 bits none beats what is found by more than a tenth, on average."""
    weight, scale, energy, quantizer = problem(1, 32, 3, 2)
    chosen, rounded = best_grid(weight, scale, energy, quantizer)
    levels = torch.arange(quantizer.qmin, quantizer.qmax + 1, dtype=torch.float64)
    every = torch.cartesian_prod(levels, levels, levels).unsqueeze(0)  # [1, 64, 3]
    pairs = zip(weight[0].unsqueeze(1), chosen[0], strict=True)
    tried = torch.stack([output_error(w, every * s, energy).min() for w, s in pairs])
    found = output_error(weight, rounded, energy)[0]
    assert (found >= tried - 1e-9).all()
    assert found.mean() < 1.1 * tried.mean()


def test_uncorrelated_inputs_leave_nothing_to_make_up_for() -> None:
    """With white inputs the columns are rounded to their nearest integers."""
    weight, scale, _, quantizer = problem(2, 8, 6, 4)
    low, high = quantizer.qmin, quantizer.qmax
    white = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    rounded = rounded_columns(weight, scale, _order(white), low, high)
    assert torch.allclose(rounded, (weight / scale).round().clamp(low, high) * scale)


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": [2, 1], "padding": [1, 2]},
        {"padding": "same", "dilation": [2, 1]},
        {"padding": "valid"},
        {"groups": 2, "padding": 1},
        {"groups": 4, "stride": 2},
    ],
    ids=str,
)
def test_unfolded_inputs_times_weights_are_the_convolution(geometry: dict[str, object]) -> None:
    """What a layer's products multiply, multiplied, is the layer's output, for any geometry."""
    groups = int(geometry.get("groups", 1))  # type: ignore[call-overload]
    layer = QuantConv2d(torch.randn(8, 4 // groups, 4, 3), None, WeightQuantizer(8, 8), dict(geometry))
    x = torch.randn(3, 4, 9, 10)
    wanted = F.conv2d(x, layer.weight, None, **geometry)  # type: ignore[arg-type]
    columns = _unfolded(layer, groups, x)
    product = layer.weight.view(groups, 8 // groups, -1) @ columns  # [G, K / G, n * L]
    found = product.flatten(0, 1).view(8, 3, *wanted.shape[2:]).transpose(0, 1)
    assert torch.allclose(found, wanted, atol=1e-5)


def logit_error(student: Student, name: str, batch: Tensor) -> float:
    with torch.no_grad():
        wanted, found = network(name)(batch), student(batch)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_kind_of_network_gets_nearer_to_the_float_one(name: str) -> None:
    """After rounding, logits at 4-bit weights err less on the images it was given."""
    student = student_of(name, "w4a8", ends="same")
    before = logit_error(student, name, images(32))
    round_layers(student, images(32).split(16))
    assert logit_error(student, name, images(32)) < before


def test_weights_stay_near_where_they_were() -> None:
    """Each stands within its integer's step, on the side of the float weight, so what moved far is easily undone."""
    student = student_of("resnet", "w3a4", ends="same")
    before = [layer.weight.detach().clone() for _, layer in student.layers()]
    round_layers(student, images(32).split(16))
    for weight, (_, layer) in zip(before, student.layers(), strict=True):
        step = layer.weight_quantizer.scale.view(-1, *(1,) * (weight.dim() - 1))
        rounded = layer.weight_quantizer(layer.weight)
        offset, wanted = (layer.weight - rounded) / step, (weight - rounded) / step
        torch.testing.assert_close(offset, wanted.clamp(-0.45, 0.45), rtol=1e-3, atol=1e-3)
        assert layer.weight_quantizer.integers(weight).ne(layer.weight_quantizer.integers(layer.weight)).any()


def test_images_never_seen_gain_too() -> None:
    """On other images of the same kind the error falls to less than half."""
    student, others = student_of("resnet", "w3a8", ends="same"), images(64, seed=7)
    before = logit_error(student, "resnet", others)
    round_layers(student, images(64, seed=3).split(16))
    assert logit_error(student, "resnet", others) < before / 2


def test_a_bias_takes_up_the_mean_error() -> None:
    """The first layer's output has the float layer's mean in every channel."""
    student = student_of("resnet", "w2a8", ends="same")
    _, first = next(student.layers())
    x = images(32)
    wanted = first_output(student, x)
    round_layers(student, x.split(16))
    quantized = student.get_submodule("x_quantizer")(x)
    assert torch.allclose(first(quantized).mean((0, 2, 3)), wanted, atol=1e-4)


def first_output(student: Student, x: Tensor) -> Tensor:
    """Means [K] of the first layer's output in floating point."""
    _, first = next(student.layers())
    assert isinstance(first, QuantConv2d)
    return F.conv2d(x, first.weight, first.bias, **first.geometry).mean((0, 2, 3)).detach()


def test_two_runs_are_equal_bit_for_bit() -> None:
    """The same images give the same scales, weights and biases."""
    students = [student_of("residual", "w4a4") for _ in range(2)]
    for student in students:
        round_layers(student, images(32).split(16))
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_nothing_is_left_running_differently() -> None:
    """Quantizers are enabled again and no activation's range has moved."""
    student = student_of("residual")
    before = [quantizer.scale.item() for _, quantizer in student.activations()]
    round_layers(student, images(32).split(16))
    assert [quantizer.scale.item() for _, quantizer in student.activations()] == before
    assert all(quantizer.enabled for _, quantizer in student.activations())
    assert all(layer.weight_quantizer.enabled for _, layer in student.layers())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_inputs_that_hardly_vary_are_no_trouble(name: str, count: int) -> None:
    """With one image or two, where pooled features have no variance at all, weights and biases stay finite."""
    student = student_of(name, "w4a8")
    round_layers(student, [images(count)])
    assert all(value.isfinite().all() for value in student.state_dict().values())


@torch.no_grad()
def test_constant_channels_are_no_trouble() -> None:
    """A depthwise layer whose inputs are large and all alike keeps finite weights and the right mean output."""
    layer = QuantConv2d(torch.randn(6, 1, 3, 3), torch.randn(6), WeightQuantizer(6, 4), {"groups": 6})
    layer.weight_quantizer.set_qparams(weight_scale(layer.weight, layer.weight_quantizer))
    x = 1000 * torch.rand(1, 6, 1, 1).expand(4, 6, 8, 8)
    wanted = layer_output(layer, x, layer.weight)
    found = rounding._rounded(layer, [(x, x)])
    assert found is not None
    found.give(layer)
    torch.testing.assert_close(
        layer_output(layer, x, layer.weight_quantizer(layer.weight)), wanted, rtol=1e-3, atol=0.1
    )


def layer_output(layer: QuantConv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, layer.bias, **layer.geometry)


def test_a_layer_of_too_many_inputs_stays_as_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its covariance would not fit in memory; the others are rounded."""
    student = student_of("resnet", "w3a4", ends="same")
    sizes = [layer.weight[0].numel() for _, layer in student.layers()]
    before = [layer.weight.detach().clone() for _, layer in student.layers()]
    monkeypatch.setattr(rounding, "_COVARIANCES", max(sizes) ** 2 - 1)
    round_layers(student, images(16).split(8))
    same = [torch.equal(weight, layer.weight) for weight, (_, layer) in zip(before, student.layers(), strict=True)]
    assert same == [size == max(sizes) for size in sizes]


def test_images_are_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest values of all images together stay within the bound; one image is always taken."""
    student = student_of("residual")
    monkeypatch.setattr(rounding, "_WIDEST", 10 * 8 * 16 * 16 + 5)  # eight channels of 16 x 16 cells are the widest
    assert images_that_fit(student) == 10
    monkeypatch.setattr(rounding, "_WIDEST", 1)
    assert images_that_fit(student) == 1


def test_no_images_are_refused() -> None:
    """There is nothing to round by."""
    with pytest.raises(ValueError, match="at least one batch"):
        round_layers(student_of("residual"), [])
