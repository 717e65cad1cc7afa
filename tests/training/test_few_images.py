from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same, request_, run, run_until, training_, without_seconds

from acq.recipe import prepare
from acq.training.few_images import FewImages
from acq.training.judging import Judge
from acq.training.loop import Training
from acq.training.selection import StudentQuality, over_kinds

ALWAYS, NEVER = 1e6, 1e-30  # divergences that every student has, and none


def stopping(enough: float, **settings: Any) -> Training:
    """A small run that ends after its few images if the divergence of a student is at most ``enough``."""
    return training_(calibration={"images": 64, "enough": enough}, **settings)


def finished(training: Training) -> Training:
    for _ in training.run():
        pass
    return training


def test_a_run_with_a_student_that_is_good_enough_makes_no_more_images() -> None:
    """It goes on with the conversion, keeps its few images, and knows where and why it stopped."""
    training = stopping(ALWAYS)
    phases = {record.phase for record in training.run()}
    assert phases == {"first", "few", "conversion"}
    assert training.stop is not None
    assert (training.stop.phase, training.stop.step) == ("few", 2)
    assert "at most 1e+06 is enough" in training.stop.reason
    assert [training.steps_of(name) for name in ("few", "generator", "images", "student")] == [2, 0, 0, 0]
    context = training.context
    assert list(context.selection.candidates) == ["first", "calibrated"]
    assert len(context.dataset) == 64
    assert context.examples is not None
    assert context.examples.proposal is None


def test_a_run_that_goes_on_keeps_only_the_first_student() -> None:
    """Dataset, examples and candidate of the few images are dropped, and the student is as before."""
    training = stopping(NEVER)
    before = training.context.state()["student"]
    run_until(training, "few")
    state = training.context.state()
    assert training.stop is None
    assert list(state["candidates"]) == ["first"]
    assert (state["dataset"], state["examples"]) == (None, None)
    assert_same(state["student"], before)
    assert list(finished(training).context.selection.candidates) == ["first", "calibrated", "trained"]


def test_a_run_that_goes_on_ends_as_if_it_had_not_looked() -> None:
    """Later phases draw the same numbers, so that images, students and figures are equal bit for bit."""
    looked, straight = finished(stopping(NEVER)).context, finished(stopping(0)).context
    assert_same(looked.state(), straight.state())


def test_the_better_of_both_students_decides() -> None:
    """The run stops at the mean divergence of the better student over kinds of images, and not below it."""
    training = stopping(ALWAYS)
    run_until(training, "few")
    phase = training.phases["few"]
    assert isinstance(phase, FewImages)
    found = phase.judge.by_kind(*phase.judge.kinds())
    best = phase.judge.best({name: over_kinds(each) for name, each in found.items()})
    least = statistics.mean(quality.divergence for quality in found[best])
    assert finished(stopping(1.001 * least)).stop is not None
    training = stopping(0.999 * least)
    run_until(training, "few")
    assert training.stop is None


def test_a_student_that_is_right_on_one_kind_alone_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The geometric mean, which ranks students, would be low enough."""
    kinds = [StudentQuality(0.1, 90.0, divergence) for divergence in (0.001, 2.4)]
    assert over_kinds(kinds).divergence < 0.05
    monkeypatch.setattr(Judge, "by_kind", lambda self, *_: dict.fromkeys(self.context.candidates, kinds))
    for enough, stops in ((0.05, False), (1.3, True)):
        training = stopping(enough)
        run_until(training, "few")
        assert (training.stop is not None) == stops


def test_a_student_without_a_divergence_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is not enough."""
    monkeypatch.setattr("acq.core.outputs.Output.divergence", lambda *_: torch.tensor(torch.nan))
    training = stopping(ALWAYS)
    run_until(training, "few")
    assert training.stop is None


@pytest.mark.parametrize("place", [("first", 1), ("few", 1), ("few", 2)])
def test_an_interrupted_run_ends_alike(place: tuple[str, int]) -> None:
    """A restored run stops where the other stopped, with the same student."""
    torch.manual_seed(0)
    whole, state, records = stopping(ALWAYS), None, []
    for record in whole.run():
        records.append(without_seconds(record))
        if (record.phase, record.step) == place:
            state = whole.state()
    assert state is not None
    again = stopping(ALWAYS)
    again.restore(state)
    rest = [without_seconds(record) for record in again.run()]
    assert rest == records[len(records) - len(rest) :]
    assert again.stop == whole.stop
    assert_same(again.context.state(), whole.context.state())


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({"bits": "w8a8"}, True),
        ({"bits": "w7a8", "preset": "fast"}, True),
        ({"bits": "w8a8", "generator": {"steps": 0}}, True),
        ({"bits": "w8a8", "preset": "best"}, False),
        ({"bits": "w8a8", "preset": "gdfq"}, False),
        ({"bits": "w8a8", "images": {"steps": 0}}, False),
        ({"bits": "w8a8", "calibration": {"enough": 0}}, False),
        ({"bits": "w8a8", "calibration": {"first_student": False}}, False),
        ({"bits": "w8a6"}, False),
        ({"bits": "w4a8"}, True),
        ({"bits": "wautoa7"}, True),
        ({"bits": "w3"}, True),
        ({"bits": "auto"}, False),
        ({"bits": "w4a8", "preset": "best"}, False),
        ({"bits": "w4a4", "calibration": {"enough": 0.1}}, True),
    ],
)
def test_runs_with_wide_activations_may_stop_early(settings: dict[str, Any], there: bool) -> None:
    """Presets default and fast stop from seven bits on, where there is a first student and images are refined."""
    assert ("few" in prepare(request_(**settings)).training.phases) == there


@pytest.mark.parametrize(("side", "count"), [(16, 64), (224, 16)])
def test_few_images_are_few_pixels(side: int, count: int) -> None:
    """Large images are fewer, in one batch."""
    training = stopping(ALWAYS)
    context = training.context
    context.preprocessing = type(context.preprocessing)((3, side, side), (0.5,) * 3, (0.25,) * 3)
    config = request_(bits="w8a8").config
    phase = FewImages(config.images, config.calibration, config.student, context)
    assert (phase.refinement.count, phase.refinement.batch) == (count, count)


def test_the_summary_says_where_a_run_stopped(tmp_path: Path) -> None:
    """An untrained generator has no figures, and the report has the reason."""
    request = request_(bits="w8a8", calibration={"images": 64, "enough": ALWAYS})
    summary = run(request, tmp_path / "run").summary
    assert summary["stopped"]["phase"] == "few"
    assert summary["steps"] == {"generator": 0, "images": 0, "student": 0}
    assert set(summary["generator"].values()) == {None}
    assert run(request_()).summary["stopped"] is None
