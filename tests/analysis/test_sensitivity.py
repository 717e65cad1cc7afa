from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import images, student_of

from acq.analysis.sensitivity import sensitivities
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import quantizers_off


@pytest.mark.parametrize("name", ["resnet", "residual in place", "dense", "squeeze-excite", "shuffle", "same padding"])
def test_every_layer_and_every_quantizer_has_one_row(name: str) -> None:
    """Rows have the layers of the plan with all weights, and each activation quantizer once; none is left disabled."""
    student = student_of(name)
    rows = sensitivities(student, [images(8)])
    layers = {row.layer: row.weight_bits for row in rows if row.weights}
    assert layers == {node.name: node.weight_bits for node in student.plan.nodes if node.weight_bits}
    assert sum(row.weights for row in rows) == sum(layer.weight.numel() for _, layer in student.layers())
    assert sum(row.bits is not None for row in rows) == len(list(student.activations()))
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    assert all(quantizer.enabled for quantizer in quantizers)


def test_ratios_are_those_of_a_layer_that_is_quantized_alone() -> None:
    """Signal to noise, agreement and range equal those of a student with one layer and its output quantized by hand."""
    student, x = student_of("residual"), images(8)
    row = next(row for row in sensitivities(student, x.split(3)) if row.layer == "stem.0")
    assert (row.bits, row.weight_bits) == (8, 8)
    tap = "middle.0.relu"
    layer, quantizer = dict(student.layers())["stem.0"], dict(student.activations())[tap]
    with torch.no_grad(), quantizers_off(student):
        logits, values = student.read(x, (tap,))
        quantizer.enabled = layer.weight_quantizer.enabled = True
        noisy_logits, noisy_values = student.read(x, (tap,))
    for ratio, signal, noisy in (
        (row.output_snr_db, values[tap], noisy_values[tap]),
        (row.logits_snr_db, logits, noisy_logits),
    ):
        by_hand = 10 * math.log10((signal.square().sum() / (noisy - signal).square().sum()).item())
        assert ratio == pytest.approx(by_hand, abs=1e-3)
    same = noisy_logits.argmax(1) == logits.argmax(1)
    assert row.agreement == pytest.approx(100 * same.float().mean().item())
    assert (row.low, row.high) == pytest.approx((0, 255 * quantizer.scale.item()))


@pytest.mark.parametrize("name", ["resnet", "relu6"])
def test_more_bits_cost_less(name: str) -> None:
    """With 8 bits every layer's output has less noise than with 4, and so have the logits on average."""
    coarse, fine = (
        {row.layer: row for row in sensitivities(student_of(name, bits, first_last_bits="same"), [images(16)])}
        for bits in ("w4a4", "w8a8")
    )
    for layer, row in fine.items():
        assert row.output_snr_db > coarse[layer].output_snr_db - 0.5  # some have 8 bits with both
    gain = sum(row.logits_snr_db - coarse[layer].logits_snr_db for layer, row in fine.items())
    assert gain > 6 * len(fine)


def test_a_requantizer_has_a_row_of_its_own() -> None:
    """A tensor that is stored in 8 bits costs little, and its copy in 4 bits costs more."""
    rows = {row.layer: row for row in sensitivities(student_of("residual"), [images(16)])}
    stored, requantized = rows["stem.0"], rows["middle.0.relu_requantizer"]
    assert (stored.bits, requantized.bits, requantized.weights) == (8, 4, 0)
    assert requantized.output_snr_db < stored.output_snr_db - 12


def test_the_student_does_not_change() -> None:
    """Values and modes are as before."""
    student = student_of("dense").train()
    before = copy.deepcopy(student.state_dict())
    sensitivities(student, [images(4)])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training


def test_images_are_needed() -> None:
    """No batch is refused."""
    with pytest.raises(ValueError, match="at least one batch"):
        sensitivities(student_of("dense"), [])
