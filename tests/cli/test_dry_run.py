from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import contents
from helpers import network
from small_runs import KNOWN

from acq.cli.dry_run import describe, estimate
from acq.config import Config
from acq.core.values import Record
from acq.errors import RequestError
from acq.recipe import Prepared, Request, prepare
from acq.training.loop import Training

pytestmark = pytest.mark.usefixtures("quick_runs")
PHASES = ["first", "generator", "images", "calibration", "student", "conversion"]
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 40, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 32, "batch": 8, "steps": 20},
    "calibration": {"images": 32},
    "student": {"steps": 30, "batch": 8},
}


def request(*changes: dict[str, Any]) -> Request:
    return Request(network("residual"), KNOWN, Config.create("default", SETTINGS, *changes), {})


def estimated(*changes: dict[str, Any]) -> dict[str, float]:
    wanted = request(*changes)
    return estimate(wanted, prepare(wanted))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """A clock of the test's own in place of training; the runs that it timed.

    The first step of a phase takes 9 seconds, others 2, and the generator's fifth, with the consistency loss, 4.5.
    The last step with few images takes 12.
    """
    timed: list[Training] = []

    def paced(training: Training) -> Iterator[Record]:
        timed.append(training)
        seconds = training.seconds
        for phase in training.phases.values():
            for step in range(phase.steps):
                judges = phase.name == "few" and step + 1 == phase.steps
                seconds += 12.0 if judges else 2.0 if 0 < step < 4 else 4.5 if step == 4 else 9.0
                yield Record(phase.name, step + 1, phase.steps, seconds, {})

    monkeypatch.setattr(Training, "run", paced)
    return timed


def test_every_phase_has_an_estimate() -> None:
    """Seconds are given per phase, in order, from steps that are really done."""
    found = estimated()
    assert list(found) == PHASES
    assert all(seconds > 0 for seconds in found.values())


def test_warnings_of_the_timed_steps_are_not_those_of_the_run() -> None:
    """A student that three steps at a high rate ruin says nothing about the run."""
    assert list(estimated({"student": {"learning_rate": 5.0}})) == PHASES


def test_steps_are_counted_at_the_pace_of_the_fastest(clock: list[Training]) -> None:
    """A phase takes the fastest timed step for each step, and the consistency loss every fifth one."""
    assert estimated() == {
        "first": 9 * 4,
        "generator": 2.5 * 40,
        "images": 2 * 80,
        "calibration": 9 * 4,
        "student": 2 * 30,
        "conversion": 9,
    }


def test_only_a_few_steps_with_the_same_batches_are_timed(clock: list[Training]) -> None:
    """The timed run has three steps per phase, five with the consistency loss, and one batch of images."""
    estimated()
    (timed,) = clock
    phases: dict[str, Any] = dict(timed.phases)
    assert [phases[name].steps for name in PHASES] == [1, 5, 3, 1, 3, 1]
    assert [phases[name].batch for name in ("generator", "images", "student")] == [8, 8, 8]
    assert (phases["images"].count, phases["calibration"].settings.images) == (8, 8)


@pytest.mark.parametrize(
    ("calibration", "batches"),
    [
        ({"images": 48}, 6),
        ({"images": 1000}, 8),  # 32 images and an augmented copy of each
        ({"images": 1000, "augmentation": False}, 4),
    ],
)
def test_calibration_grows_with_its_images(clock: list[Training], calibration: dict[str, Any], batches: int) -> None:
    """Calibration takes the time of the timed batch for each batch, augmented copies included."""
    assert estimated({"calibration": calibration})["calibration"] == 9 * batches


def test_few_images_end_with_a_student(clock: list[Training]) -> None:
    """The last step calibrates and judges, and is counted once. The timed run does not stop there."""
    assert estimated({"bits": "w8a8"})["few"] == 19 * 2 + 12
    (timed,) = clock
    assert list(timed.phases) == ["first", "few", *PHASES[1:]]


def test_a_run_that_may_end_early_says_how_soon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A line gives the time until then; a run that cannot end early has none."""
    for changes, there in (({"bits": "w8a8"}, True), ({}, False)):
        describe(request(changes), tmp_path / "run", None, as_json=False, export=False)
        assert ("it may end after phase few, in about " in capsys.readouterr().out) == there


def test_more_steps_take_longer_by_as_much(clock: list[Training]) -> None:
    """Twice the steps of a phase take twice its time, and that of no other phase."""
    usual = estimated()
    for phase in ("generator", "student"):
        more = estimated({phase: {"steps": 2 * SETTINGS[phase]["steps"]}})
        assert more == {**usual, phase: 2 * usual[phase]}
    assert estimated({"images": {"count": 64}})["images"] == 2 * usual["images"]


def test_images_as_generated_are_counted_in_batches(clock: list[Training]) -> None:
    """Without refinement the one step grows with the number of images."""
    assert estimated({"images": {"steps": 0}})["images"] == 9 * 4


def test_no_student_steps_take_no_time(clock: list[Training]) -> None:
    """A student that is not trained takes no time in its phase."""
    assert estimated({"student": {"steps": 0}})["student"] == 0


def test_an_estimate_leaves_the_run_as_it_is() -> None:
    """The estimated run is still before its first step."""
    wanted = request()
    prepared: Prepared = prepare(wanted)
    state = prepared.training.state()
    assert list(estimate(wanted, prepared)) == PHASES
    after = prepared.training.state()
    assert (after["phase"], after["step"], after["seconds"]) == (state["phase"], 0, state["seconds"])
    assert (after["context"]["rng"] == state["context"]["rng"]).all()


def test_automatic_bits_are_chosen_once(clock: list[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed run has the bits that the estimated run chose."""
    wanted = request({"bits": "auto", "first_last_bits": "same"})
    prepared = prepare(wanted)
    monkeypatch.setattr("acq.recipe.automatic_bits", pytest.fail)
    estimate(wanted, prepared)
    plans = [training.context.student.plan for training in (*clock, prepared.training)]
    assert plans[0].rows() == plans[1].rows()


def test_wrong_data_is_refused_before_anything_is_timed(
    clock: list[Training], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run checks labelled images as the run would."""
    with pytest.raises(RequestError, match="no data at"):
        describe(request(), tmp_path / "run", tmp_path / "none.npz", as_json=False)
    assert clock == []
    assert capsys.readouterr().out == ""
    assert contents(tmp_path) == {}
