from __future__ import annotations

import pytest
import torch
from helpers import NETWORKS, images, network, student_of
from torch import Tensor
from torch.nn import functional as F

from acq.quantization.calibration import weight_scale
from acq.quantization.layers import QuantConv2d
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.rounding import images_that_fit, round_layer, round_layers, unfold_inputs
from acq.quantization.student import Student


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
@pytest.mark.parametrize("kernel", [(4, 3), (1, 1)], ids=str)
def test_unfolded_inputs_times_weights_are_the_convolution(
    geometry: dict[str, object], kernel: tuple[int, int]
) -> None:
    """Their product with the weights is the layer's output, for any geometry."""
    groups = int(geometry.get("groups", 1))  # type: ignore[call-overload]
    layer = QuantConv2d(torch.randn(8, 4 // groups, *kernel), None, WeightQuantizer(8, 8), dict(geometry))
    x = torch.randn(3, 4, 9, 10)
    wanted = F.conv2d(x, layer.weight, None, **geometry)  # type: ignore[arg-type]
    columns = unfold_inputs(layer, x)
    product = layer.weight.view(groups, 8 // groups, -1) @ columns  # [G, K / G, n * L]
    found = product.flatten(0, 1).view(8, 3, *wanted.shape[2:]).transpose(0, 1)
    assert torch.allclose(found, wanted, atol=1e-5)


def logit_error(student: Student, name: str, batch: Tensor) -> float:
    with torch.no_grad():
        wanted, found = network(name)(batch), student(batch)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_rounding_brings_every_network_nearer_to_the_float_one(name: str) -> None:
    """After rounding, logits at 4-bit weights have less error on the given images."""
    student = student_of(name, "w4a8", first_last_bits="same")
    before = logit_error(student, name, images(32))
    round_layers(student, images(32).split(16))
    assert logit_error(student, name, images(32)) < before


def test_weights_stay_near_their_old_values() -> None:
    """Each is within its integer's step, on the side of the old weight, so that training easily undoes large moves."""
    student = student_of("resnet", "w3a4", first_last_bits="same")
    before = [layer.weight.detach().clone() for _, layer in student.layers()]
    round_layers(student, images(32).split(16))
    for weight, (_, layer) in zip(before, student.layers(), strict=True):
        step = layer.weight_quantizer.scale.view(-1, *(1,) * (weight.dim() - 1))
        rounded = layer.weight_quantizer(layer.weight)
        offset, wanted = (layer.weight - rounded) / step, (weight - rounded) / step
        torch.testing.assert_close(offset, wanted.clamp(-0.45, 0.45), rtol=1e-3, atol=1e-3)
        assert layer.weight_quantizer.integers(weight).ne(layer.weight_quantizer.integers(layer.weight)).any()


def test_other_images_gain_too() -> None:
    """On images that rounding did not use, the error falls to less than half."""
    student, others = student_of("resnet", "w3a8", first_last_bits="same"), images(64, seed=7)
    before = logit_error(student, "resnet", others)
    round_layers(student, images(64, seed=3).split(16))
    assert logit_error(student, "resnet", others) < before / 2


def test_a_bias_compensates_the_mean_error() -> None:
    """The first layer's output has the float layer's mean in every channel."""
    student = student_of("resnet", "w2a8", first_last_bits="same")
    _, first = next(student.layers())
    x = images(32)
    wanted = first_output(student, x)
    round_layers(student, x.split(16))
    quantized = student.get_submodule("image_quantizer")(x)
    assert torch.allclose(first(quantized).mean((0, 2, 3)), wanted, atol=1e-4)


def first_output(student: Student, x: Tensor) -> Tensor:
    """Means [K] of the first layer's output in floating point."""
    _, first = next(student.layers())
    assert isinstance(first, QuantConv2d)
    return F.conv2d(x, first.weight, first.bias, **first.geometry).mean((0, 2, 3)).detach()


@pytest.mark.parametrize(("name", "layer"), [("resnet", "layer1.*"), ("relu6", "middle.1.0"), ("two linears", "one")])
def test_layers_in_float_keep_their_weights(name: str, layer: str) -> None:
    """The others are rounded on the outputs of layers in floating point, and the student gets nearer to the network."""
    student = student_of(name, "w3a8", first_last_bits="same", layers={layer: "float"})
    kept = [student.get_buffer(str(node.target)).clone() for node in student.graph.nodes if node.op == "get_attr"]
    before = logit_error(student, name, images(32))
    round_layers(student, images(32).split(16))
    assert logit_error(student, name, images(32)) < before
    after = [student.get_buffer(str(node.target)) for node in student.graph.nodes if node.op == "get_attr"]
    assert all(torch.equal(*pair) for pair in zip(kept, after, strict=True))


def test_two_runs_are_equal_bit_for_bit() -> None:
    """The same images give the same scales, weights and biases."""
    students = [student_of("residual", "w4a4") for _ in range(2)]
    for student in students:
        round_layers(student, images(32).split(16))
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_activations_stay_as_they_are() -> None:
    """Quantizers are enabled again, and no activation's range moves."""
    student = student_of("residual")
    before = [quantizer.scale.item() for _, quantizer in student.activations()]
    round_layers(student, images(32).split(16))
    assert [quantizer.scale.item() for _, quantizer in student.activations()] == before
    assert all(quantizer.enabled for _, quantizer in student.activations())
    assert all(layer.weight_quantizer.enabled for _, layer in student.layers())


@pytest.mark.parametrize(("name", "count"), [(name, 1 + place % 2) for place, name in enumerate(sorted(NETWORKS))])
def test_inputs_that_hardly_vary_give_finite_weights(name: str, count: int) -> None:
    """With one image or two, pooled features have no variance at all; weights and biases are finite."""
    student = student_of(name, "w4a8")
    round_layers(student, [images(count)])
    assert all(value.isfinite().all() for value in student.state_dict().values())


@torch.no_grad()
def test_constant_channels_give_the_right_mean() -> None:
    """A depthwise layer with large inputs that are all equal keeps finite weights and the right mean output."""
    layer = QuantConv2d(torch.randn(6, 1, 3, 3), torch.randn(6), WeightQuantizer(6, 4), {"groups": 6})
    layer.weight_quantizer.set_qparams(weight_scale(layer.weight, layer.weight_quantizer))
    x = 1000 * torch.rand(1, 6, 1, 1).expand(4, 6, 8, 8)
    wanted = layer_output(layer, x, layer.weight)
    round_layer(layer, [(x, x)]).apply(layer)
    torch.testing.assert_close(
        layer_output(layer, x, layer.weight_quantizer(layer.weight)), wanted, rtol=1e-3, atol=0.1
    )


def layer_output(layer: QuantConv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, layer.bias, **layer.geometry)


def test_a_layer_with_too_many_inputs_stays_as_calibrated() -> None:
    """Its Hessian would not fit in memory; the others are rounded."""
    student = student_of("resnet", "w3a4", first_last_bits="same")
    sizes = [layer.weight[0].numel() for _, layer in student.layers()]
    before = [layer.weight.detach().clone() for _, layer in student.layers()]
    round_layers(student, images(16).split(8), most_hessian_values=max(sizes) ** 2 - 1)
    same = [torch.equal(weight, layer.weight) for weight, (_, layer) in zip(before, student.layers(), strict=True)]
    assert same == [size == max(sizes) for size in sizes]


def test_as_many_images_are_taken_as_fit() -> None:
    """The widest tensor of all images together stays within the bound; one image is always taken."""
    student, widest = student_of("residual"), 8 * 16 * 16  # eight channels of 16 x 16
    assert images_that_fit(student, 10 * widest + 5) == 10
    assert images_that_fit(student, 1) == 1
    assert images_that_fit(student) == (1 << 28) // widest


def test_no_images_are_refused() -> None:
    """Rounding needs the inputs of layers."""
    with pytest.raises(ValueError, match="at least one batch"):
        round_layers(student_of("residual"), [])
