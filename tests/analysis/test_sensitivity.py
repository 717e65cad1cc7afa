from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import NETWORKS, images, student_of

from acq.analysis.sensitivity import sensitivities
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, quantizers_off


def enabled(student: Student) -> list[bool]:
    return [m.enabled for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_and_every_grid_is_there_once(name: str) -> None:
    """Layers by the nodes that the plan gives weights, with all of them; the quantizers are as before."""
    student = student_of(name)
    found = sensitivities(student, [images(8)])
    layers = {row.layer: row.weight_bits for row in found if row.weights}
    assert layers == {site.node: site.weight_bits for site in student.plan.sites if site.weight_bits}
    assert sum(row.weights for row in found) == sum(layer.weight.numel() for _, layer in student.layers())
    assert sum(row.bits is not None for row in found) == len(list(student.activations()))
    assert all(enabled(student))


def test_ratios_are_those_of_a_layer_quantized_by_hand() -> None:
    """Values and logits of the network with its first convolution and rectifier alone on grids."""
    student, x = student_of("residual"), images(8)
    _, first, *_ = sensitivities(student, x.split(3))
    assert (first.layer, first.bits, first.weight_bits) == ("conv2d", 8, 8)
    with torch.no_grad(), quantizers_off(student):
        wanted, values = student.read(x, ("relu",))
        student.get_submodule("relu_quantizer").enabled = True  # type: ignore[assignment]
        next(student.layers())[1].weight_quantizer.enabled = True
        found, given = student.read(x, ("relu",))
    for ratio, clean, noisy in (
        (first.ratio_db, values["relu"], given["relu"]),
        (first.logits_db, wanted, found),
    ):
        hand = 10 * math.log10((clean.square().sum() / (noisy - clean).square().sum()).item())
        assert ratio == pytest.approx(hand, abs=1e-3)
    assert first.agreement == pytest.approx(100 * (found.argmax(1) == wanted.argmax(1)).float().mean().item())
    grid = student.get_submodule("relu_quantizer")
    assert (first.low, first.high) == pytest.approx((0, 255 * grid.scale.item()))  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("name", ["resnet", "relu6"])
def test_finer_grids_cost_less(name: str) -> None:
    """Of every layer with as fine weights, more so at 8 bits than at 4."""
    coarse, fine = (sensitivities(student_of(name, bits, ends="same"), [images(16)]) for bits in ("w4a4", "w8a8"))
    pairs = [(row, next(other for other in coarse if other.layer == row.layer)) for row in fine]
    for after, before in pairs:
        assert after.ratio_db > before.ratio_db - 0.5  # grids that have 8 bits already stay as they are
    assert sum(after.logits_db - before.logits_db for after, before in pairs) > 6 * len(fine)


def test_a_narrower_grid_is_a_place_of_its_own() -> None:
    """What is held in 8 bits costs little; narrowed to 4 for the layer that reads it, more."""
    rows = {row.layer: row for row in sensitivities(student_of("residual"), [images(16)])}
    held, narrow = rows["conv2d"], rows["relu_narrow"]
    assert (held.bits, narrow.bits, narrow.weights) == (8, 4, 0)
    assert narrow.ratio_db < held.ratio_db - 12


def test_nothing_is_changed() -> None:
    """Neither values nor modes."""
    student, x = student_of("dense"), images(4)
    student.train()
    before = copy.deepcopy(student.state_dict())
    sensitivities(student, [x])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training


def test_images_are_needed() -> None:
    """None are refused."""
    with pytest.raises(ValueError, match="at least one batch"):
        sensitivities(student_of("dense"), [])
