"""Formats such as w4, which quantize weights and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import NETWORKS, images, student_of, traced

from acq.config import Config
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize
from acq.quantization.formats import NumberFormat
from acq.quantization.integers import convert_to_integers
from acq.quantization.node_plan import Placement
from acq.quantization.plan import plan
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.rounding import round_layers
from acq.runs import student_file


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_tensor_has_a_quantizer(name: str, placement: Placement) -> None:
    """Neither activations nor sums nor the image; every layer has quantized weights, of the same widths as w4a4."""
    found, both = (plan(traced(name), NumberFormat.parse(bits, 8), placement) for bits in ("w4", "w4a4"))
    assert not any(entry.output_bits or entry.requantize_for for entry in found.nodes)
    assert [entry.weight_bits for entry in found.nodes] == [entry.weight_bits for entry in both.nodes]
    assert not list(build(traced(name), found).activations())


@pytest.mark.parametrize("name", ["resnet", "squeeze-excite", "pre-activation", "leaky", "two linears"])
def test_students_are_calibrated_rounded_and_saved(name: str, tmp_path: Path) -> None:
    """Their only error is that of weights; rounding reads inputs in floating point, and the file gives them back."""
    student = student_of(name, "w4")
    batches = [images(16)]
    assert not equalize(student, batches)
    round_layers(student, batches)
    before = student(images(4))
    convert_to_integers(student)
    assert torch.equal(student(images(4)), before)
    student_file.save(student, tmp_path, {})
    assert torch.equal(student_file.load(tmp_path)(images(4)), before)


def test_more_bits_of_weights_have_less_error() -> None:
    """Without rounded activations 8 bits are the network but for rounding of weights to a thousandth of their range."""
    reference, x = traced("resnet")(images(8)), images(8)
    errors = [(student_of("resnet", bits)(x) - reference).abs().max().item() for bits in ("w3", "w5", "w8")]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05 * reference.abs().max().item()


def test_calibration_of_weights_needs_no_forward_pass() -> None:
    """Scales come from the weights, so images of any kind will do."""
    student = build(traced("resnet"), plan(traced("resnet"), NumberFormat.parse("w4")))
    calibrate(student, [torch.full((1, 3, 16, 16), torch.nan)])
    assert all(m.calibrated for m in student.modules() if isinstance(m, WeightQuantizer))


def test_settings_of_weights_alone() -> None:
    """8-bit weights use their whole range, since no product is an integer; sums have no bits to show."""
    config = Config.create("default", {"bits": "w8"})
    assert config.format == NumberFormat.parse("w8", 8)
    assert config.headline()["add_bits"] is None
    assert Config.create("default", {"bits": "w8"}).student.auto_steps == Config.create("fast").student.auto_steps
