from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_runs import assert_same, training_
from torch import Tensor

from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.training.calibration import Calibration
from acq.training.phase import StepResult
from acq.training.selection import CALIBRATED

COUNT = 24  # images of the dataset


def phase_(name: str = "residual", **settings: Any) -> Calibration:
    """A calibration of images that are as generated."""
    training = training_(name=name, calibration=settings)
    training.context.dataset = training.context.generated(COUNT)
    phase = training.phases["calibration"]
    assert isinstance(phase, Calibration)
    return phase


def test_every_quantizer_gets_a_range() -> None:
    """Afterwards no scale of the student is NaN, and its outputs are near the teacher's."""
    phase = phase_()
    assert phase.step(0, 1.0) == StepResult({})
    student, dataset = phase.context.student, phase.context.dataset
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    assert all(quantizer.calibrated for quantizer in quantizers)
    assert all(value.isfinite().all() for value in student.state_dict().values())
    with torch.no_grad():
        error = (student(dataset.images) - dataset.batch.logits).square().mean()
    assert error < 0.2 * dataset.batch.logits.var()


def test_the_calibrated_student_is_a_candidate() -> None:
    """Its state is kept as it is, whatever is trained later."""
    phase = phase_(rounding=False, equalization=False)
    phase.step(0, 1.0)
    student = phase.context.student
    before = copy.deepcopy(student.state_dict())
    assert list(phase.context.candidates) == [CALIBRATED]
    with torch.no_grad():
        for value in student.parameters():
            value.add_(1)
    assert_same(phase.context.candidates[CALIBRATED], before)


@pytest.mark.parametrize(
    ("augmentation", "images", "seen"), [(True, 12, 12), (True, 40, 40), (True, 64, 48), (False, 64, 24)]
)
def test_few_images_are_augmented(monkeypatch: pytest.MonkeyPatch, augmentation: bool, images: int, seen: int) -> None:
    """Images of the dataset come first, then an augmented copy of each as far as they are needed and wanted."""
    taken = list[Tensor]()
    monkeypatch.setattr("acq.quantization.untrained.calibrate", lambda _, batches: taken.extend(batches))
    phase = phase_(augmentation=augmentation, images=images, rounding=False, equalization=False)
    phase.step(0, 1.0)
    found, dataset = torch.cat(taken), phase.context.dataset.images
    assert len(found) == seen == phase.images_of(COUNT)
    known = [any(torch.equal(image, other) for other in dataset) for image in found]
    assert all(known[:COUNT])
    assert not any(known[COUNT:])


def test_weights_stay_unless_they_are_rounded_or_rescaled() -> None:
    """Calibration alone changes no weight; rounding and equalization do."""

    def weights(**settings: bool) -> list[Tensor]:
        phase = phase_(**settings)
        phase.step(0, 1.0)
        return [layer.weight.detach() for _, layer in phase.context.student.layers()]

    original = [layer.weight.detach() for _, layer in phase_().context.student.layers()]
    assert_same(weights(rounding=False, equalization=False), original)
    for settings in ({"rounding": True, "equalization": False}, {"rounding": False, "equalization": True}):
        pairs = zip(weights(**settings), original, strict=True)
        assert any(not torch.equal(now, before) for now, before in pairs)


@pytest.mark.parametrize(
    ("name", "setting", "equalized"),
    [("residual", "auto", True), ("relu6", "auto", False), ("relu6", True, True), ("residual", False, False)],
)
def test_automatic_equalization_spares_depthwise_networks(name: str, setting: Any, equalized: bool) -> None:
    """Channels are rescaled unless a convolution is depthwise; the setting overrides that."""
    phase = training_(name=name, calibration={"equalization": setting}).phases["calibration"]
    assert isinstance(phase, Calibration)
    assert phase.settings.equalizes(phase.context.teacher) == equalized


def test_calibration_repeats() -> None:
    """Two runs that are equal before are equal after."""
    first, second = phase_(), phase_()
    for phase in (first, second):
        phase.step(0, 1.0)
    assert_same(first.context.state(), second.context.state())
    assert first.state() == {}
