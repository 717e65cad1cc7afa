from __future__ import annotations

import copy

import pytest
import torch
from helpers import SIZE, images, network, settled, student_from
from torch import Tensor

from acq.network.trace import trace
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize
from acq.quantization.rounding import round_layers
from acq.quantization.student import Student
from acq.quantization.untrained import fit_untrained


def made() -> Student:
    return student_from(trace(settled(network("residual")), SIZE), "w3a4")


def weights(student: Student) -> list[Tensor]:
    return [layer.weight.detach().clone() for _, layer in student.layers()]


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_steps_come_in_order(equalized: bool, rounded: bool) -> None:
    """Ranges are set first, and again where channels were rescaled; then layers are rounded."""
    student, expected, seen = made(), made(), images(24)
    fit_untrained(student, seen, equalized=equalized, rounded=rounded)
    calibrate(expected, [seen])
    if equalized:
        assert equalize(expected, [seen])
        calibrate(expected, [seen])
    if rounded:
        round_layers(expected, [seen])
    found, wanted = student.state_dict(), expected.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_weights_stay_without_both_steps() -> None:
    """Calibration alone sets ranges and changes no weight."""
    student = made()
    before = copy.deepcopy(weights(student))
    fit_untrained(student, images(8), equalized=False, rounded=False)
    assert all(torch.equal(now, then) for now, then in zip(weights(student), before, strict=True))


def test_named_tensors_are_not_rescaled() -> None:
    """The channels of a tensor that others read stay as they are."""
    student, kept = made(), made()
    fit_untrained(student, images(24), equalized=True, rounded=False)
    names = {module.name for _, module in kept.activations()}
    fit_untrained(kept, images(24), equalized=True, rounded=False, keep=names)
    assert any(not torch.equal(a, b) for a, b in zip(weights(student), weights(kept), strict=True))
