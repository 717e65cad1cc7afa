from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, images, student_of, traced
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import Reader, activation_range, best_scale, calibrate, weight_scale
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.zoo.resnet import resnet20


def error(x: Tensor, quantizer: ActivationQuantizer) -> float:
    quantizer.set_qparams(*activation_range(x, quantizer))
    return (quantizer(x) - x).square().mean().item()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_scales_beat_the_full_range(bits: int) -> None:
    """In every channel the error at the searched scale is at most that at the scale which just covers the weights."""
    weight, quantizer = torch.randn(16, 8, 3, 3), WeightQuantizer(16, bits)
    errors = []
    for scale in (weight_scale(weight, quantizer), weight.flatten(1).abs().amax(1) / quantizer.qmax):
        quantizer.set_qparams(scale)
        errors.append((quantizer(weight) - weight).square().flatten(1).sum(1))
    assert (errors[0] <= errors[1] * 1.01).all()


@pytest.mark.parametrize(("bits", "wanted"), [(2, 0.1188), (3, 0.0345), (4, 0.01154), (5, 0.00349)])
def test_weight_search_reaches_the_best_uniform_quantizer(bits: int, wanted: float) -> None:
    """On Gaussian weights the error is near that of the optimal uniform quantizer (Max, 1960, table II)."""
    weight, quantizer = torch.randn(1, 100_000), WeightQuantizer(1, bits)
    quantizer.set_qparams(weight_scale(weight, quantizer))
    found = (quantizer(weight) - weight).square().mean().item()
    # the table's quantizers have no level at zero, which costs up to a third at 2 bits
    assert wanted * 0.97 < found < wanted * 1.45


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["signed", "skewed", "rectified", "heavy"])
def test_activation_ranges_beat_the_full_range(kind: str, bits: int) -> None:
    """The error in the searched range is at most that between minimum and maximum, and zero is exact."""
    x = torch.randn(5000)
    x = {"signed": x, "skewed": x.exp() - 1.2, "rectified": x.relu(), "heavy": x / torch.rand(5000)}[kind]
    quantizer = ActivationQuantizer(bits)
    found = error(x, quantizer)
    low, high = x.min().clamp(max=0), x.max()
    scale = (high - low) / quantizer.qmax
    quantizer.set_qparams(scale, (-low / scale).round())
    assert found <= (quantizer(x) - x).square().mean().item() * 1.0001
    assert quantizer(torch.zeros(1)).item() == 0


def test_rectified_values_use_every_level() -> None:
    """A tensor without negative values has zero point 0, one without positive values the greatest."""
    x, quantizer = torch.rand(100), ActivationQuantizer(4)
    assert activation_range(x, quantizer)[1] == 0
    assert activation_range(-x, quantizer)[1] == 15


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, 1e30])
def test_constant_tensors_are_exact(value: float) -> None:
    """A tensor of one value comes back to within 1e-5 of itself, whatever its size and sign."""
    x, quantizer = torch.full((10,), value), ActivationQuantizer(4)
    quantizer.set_qparams(*activation_range(x, quantizer))
    torch.testing.assert_close(quantizer(x), x, rtol=1e-5, atol=1e-37)


def test_the_best_candidate_is_chosen_for_each_row() -> None:
    """Rows choose independently; a row without a finite error gets 1."""
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0], [torch.nan, 0.0]])
    candidates = [torch.full((3,), scale) for scale in (1.0, 10.0)]
    assert best_scale(rows, candidates, -2, 2).tolist() == [1.0, 10.0, 1.0]


def test_a_layer_in_float_needs_no_calibration() -> None:
    """Its neighbours have ranges, and the student runs."""
    student = student_of("relu6", layers={"middle.1.0": "float"})
    assert [name for name, _ in student.activations()] == ["image", "middle.0", "middle.2", "head.adaptive_avg_pool2d"]
    assert all(quantizer.calibrated for _, quantizer in student.activations())
    with torch.no_grad():
        assert student(images(3)).isfinite().all()


def test_channels_of_zeros_get_a_usable_scale() -> None:
    """A channel of zeros gets the mean scale of the others, and all zeros a scale of one."""
    weight, quantizer = torch.randn(3, 20), WeightQuantizer(3, 4)
    weight[1] = 0
    scale = weight_scale(weight, quantizer)
    assert scale[1] == (scale[0] + scale[2]) / 2
    assert torch.equal(weight_scale(torch.zeros(3, 20), quantizer), torch.ones(3))


@pytest.mark.parametrize(
    ("x", "words"), [(torch.empty(0), "never observed"), (torch.tensor([1.0, torch.nan]), "finite")]
)
def test_values_without_a_range_are_refused(x: Tensor, words: str) -> None:
    """The message for no values, or for values that are not finite, names the tensor."""
    with pytest.raises(RequestError, match=f"'relu_7'.*{words}"):
        activation_range(x, ActivationQuantizer(4, "relu_7"))


def test_calibration_is_repeatable() -> None:
    """Two calibrations give equal scales and zero points, bit for bit."""
    students = [student_of("dense"), student_of("dense")]
    calibrate(students[1], images(32).split(16))
    states = [student.state_dict() for student in students]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_calibration_needs_images() -> None:
    """No batches, or values that are not finite, are errors; afterwards no quantizer observes."""
    graph = traced("dense")
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(student, [])
    with pytest.raises(RequestError, match="not finite"):
        calibrate(student, [images(4) * torch.nan])
    with pytest.raises(RuntimeError, match="no range yet"):
        student(images(1))


def test_public_network_keeps_its_accuracy(shared: Callable[[str], Path]) -> None:
    """ResNet-20 (91.7 %), calibrated on 128 images, recognises 300 others nearly as well."""
    with np.load(shared("cifar10-test.npz")) as data:
        pixels, labels = data["images"][:428], torch.tensor(data["labels"][128:428].astype("int64"))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    x = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - mean) / std  # [N, H, W, 3] -> [N, 3, H, W]
    model = resnet20()
    model.load_state_dict(load_file(shared("resnet20-cifar10.safetensors")))
    graph = trace(model, (3, 32, 32))
    for bits, least in (("w8a8", 89.0), ("w4a4", 78.0)):
        student = build(graph, plan(graph, NumberFormat.parse(bits, "8")))
        calibrate(student, x[:128].split(64))
        with torch.no_grad():
            top1 = (student(x[128:]).argmax(1) == labels).float().mean().item() * 100
        assert top1 > least


SAMPLES: dict[str, Tensor] = {
    "around zero": torch.randn(5000, generator=torch.Generator().manual_seed(0)),
    "below zero": torch.randn(5000, generator=torch.Generator().manual_seed(1)) - 3,
    "rectified": (torch.randn(5000, generator=torch.Generator().manual_seed(2)) + 0.7).relu(),
    "a small lobe below zero": F.hardswish(3 * torch.randn(5000, generator=torch.Generator().manual_seed(3)) - 6),
    "two sides of different length": torch.cat([torch.linspace(-1.1, 0, 4000), torch.linspace(0, 40, 50)]),
}


def rounding_error(x: Tensor, scale: float, zero: float, qmax: int, reader: Reader = torch.positive) -> float:
    """The mean squared error that a reader sees, in double precision."""
    x = x.double()
    rounded = ((x / scale).round() + zero).clamp(0, qmax) - zero
    return (reader(rounded * scale) - reader(x)).square().mean().item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("reader", [torch.positive, F.hardswish, F.silu])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_power_of_two_range_is_the_best_one(name: str, reader: Reader, bits: int) -> None:
    """Its zero point is even, and no other power of two and even zero point has a smaller error."""
    x, quantizer = SAMPLES[name], ActivationQuantizer(bits, power_of_two_scales=True)
    scale, zero = (value.item() for value in activation_range(x, quantizer, reader))
    assert math.log2(scale).is_integer()
    assert zero % 2 == 0
    pairs = itertools.product(range(-9, 4), range(0, quantizer.qmax + 1, 2))
    best = min(rounding_error(x, 2.0**power, zero, quantizer.qmax, reader) for power, zero in pairs)
    assert rounding_error(x, scale, zero, quantizer.qmax, reader) <= best * (1 + 1e-6) + 1e-15


@pytest.mark.parametrize("even", [False, True])
def test_importance_counts_values_several_times(even: bool) -> None:
    """Values of importance 3 have the range of a sample in which they stand three times, and those of 0 have none."""
    x, quantizer = SAMPLES["around zero"], ActivationQuantizer(4, power_of_two_scales=even)
    often = x.abs() > 2
    ranges = [
        activation_range(x, quantizer, importance=1.0 + 2 * often),
        activation_range(torch.cat((x, x[often], x[often])), quantizer),
    ]
    torch.testing.assert_close(*ranges)
    narrow = activation_range(x, quantizer, importance=(x.abs() < 0.5).float())
    assert narrow[0] < 0.5 * ranges[0][0]


class Weighted(nn.Module):
    """A convolution that reads the last channel, whose values are large, with almost no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, bias=False)
        self.stem.weight.data[3] *= 50
        self.layer.weight.data[:, 3] = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.stem(x))).mean((2, 3))


@pytest.mark.parametrize("bits", [4, 8])
def test_ranges_follow_what_layers_read(bits: int) -> None:
    """At 8 bits, values that a layer multiplies by almost nothing take no part of the range; below, they do."""
    graph = trace(Weighted(), SIZE)
    student = build(graph, plan(graph, NumberFormat(8, bits), "layers"))
    calibrate(student, images(64).split(16))
    (quantizer,) = (m for m in student.modules() if isinstance(m, ActivationQuantizer) and "relu" in m.name)
    assert (quantizer.qmax * quantizer.scale < 20).item() == (bits == 8)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_scale_near_by_is_better(name: str) -> None:
    """A scale of any value, with its zero point, is within a hundredth of the best of a fine grid."""
    x, quantizer = SAMPLES[name], ActivationQuantizer(4)
    scale, zero = (value.item() for value in activation_range(x, quantizer))
    pairs = itertools.product((scale * 1.01**power for power in range(-60, 61)), range(quantizer.qmax + 1))
    best = min(rounding_error(x, other, float(place), quantizer.qmax) for other, place in pairs)
    assert rounding_error(x, scale, zero, quantizer.qmax) <= 1.01 * best


@pytest.mark.parametrize(("function", "low"), [(nn.Hardswish, -3), (nn.Hardsigmoid, -3), (nn.SiLU, -9), (nn.GELU, -6)])
def test_values_that_their_reader_cuts_off_take_no_part_of_the_range(function: type[nn.Module], low: float) -> None:
    """A layer's output down to -20 and up to 12 is represented from ``low`` on, where a nonlinearity alone reads it."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), function(), nn.Conv2d(8, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        for convolution in (network[0], network[2]):
            convolution.bias.zero_()
        network[0].weight.copy_(torch.linspace(-1, 1, 8).view(8, 1, 1, 1))
    graph = trace(network, (3, 4, 4))
    student = build(graph, plan(graph, NumberFormat(8, 8), "deployable"))
    x = 12 * torch.rand(16, 3, 4, 4) - 2
    calibrate(student, [x])
    quantizer = dict(student.activations())["0"]
    least = (quantizer.qmin - quantizer.zero_point.item()) * quantizer.scale.item()
    assert least >= low - 0.5
