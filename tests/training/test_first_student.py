from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import assert_same, request_, training_

from acq.recipe import prepare
from acq.training.calibration import CalibrationSettings
from acq.training.first_student import FirstStudent
from acq.training.loop import Training
from acq.training.phase import StepResult


def run_first(training: Training) -> FirstStudent:
    """Do the one step of a run's first phase."""
    phase = training.phases["first"]
    assert isinstance(phase, FirstStudent)
    assert phase.step(0, 1.0) == StepResult({})
    return phase


def test_the_first_student_is_a_candidate_near_the_teacher() -> None:
    """It works without images of the run: its answers on new scenes are near the teacher's."""
    training = training_(calibration={"images": 64})
    context = run_first(training).context
    assert list(context.candidates) == ["first"]
    context.student.load_state_dict(context.candidates["first"])
    images = context.scenes(64, torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = context.teacher.logits(images)
        error = (context.student.logits(images) - wanted).square().mean()
    assert error < 0.2 * wanted.var()


def test_later_phases_do_not_notice_it() -> None:
    """Student, random state and all later draws are those of a run without it."""
    with_first, without = training_(), training_(calibration={"first_student": False})
    assert "first" not in without.phases
    run_first(with_first)
    assert_same(with_first.context.state()["student"], without.context.state()["student"])
    with_first.context.candidates = {}
    for training in (with_first, without):
        for name in ("generator", "images", "calibration"):
            phase = training.phases[name]
            for step in range(phase.steps):
                phase.step(step, 1.0)
    assert_same(with_first.context.state(), without.context.state())


def test_seeds_have_different_scenes_and_equal_seeds_the_same() -> None:
    """Two runs of one seed begin with the same student."""
    states = [copy.deepcopy(run_first(training_(seed)).context.candidates["first"]) for seed in (0, 0, 1)]
    assert_same(states[0], states[1])
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({}, True),
        ({"generator": {"steps": 0}}, True),
        ({"images": {"steps": 0}}, True),
        ({"generator": {"steps": 0}, "images": {"steps": 0}}, False),
        ({"preset": "gdfq"}, False),
        ({"preset": "acq"}, False),
    ],
)
def test_runs_have_one_unless_scenes_are_their_images(settings: dict[str, Any], there: bool) -> None:
    """A dataset of scenes gives the same student, and the preset of a paper has none."""
    assert ("first" in prepare(request_(**settings)).training.phases) == there


@pytest.mark.parametrize(
    ("bits", "preset", "quick"), [("w8a8", "default", True), ("w4a8", "default", False), ("w8a8", "best", False)]
)
def test_wide_weights_need_fewer_scenes_where_the_run_may_stop(bits: str, preset: str, quick: bool) -> None:
    """At 224 pixels 62 scenes suffice there, and 208 are taken otherwise."""
    config, context = request_(bits=bits, preset=preset).config, training_().context
    context.preprocessing = replace(context.preprocessing, input_size=(3, 224, 224))
    calibration = CalibrationSettings(enough=config.calibration.enough)
    assert FirstStudent(calibration, config.format.weight, context).count == (62 if quick else 208)


@pytest.mark.parametrize(("images", "count"), [(8, 8), (1024, 512)])
def test_the_number_of_scenes_is_bounded(images: int, count: int) -> None:
    """Calibration's own bound holds, and that of a dataset."""
    phase = training_(calibration={"images": images}).phases["first"]
    assert isinstance(phase, FirstStudent)
    assert phase.count == count
