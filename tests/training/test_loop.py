from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import assert_same, run_until, training_, without_seconds

from acq.core.values import Record
from acq.errors import RunError
from acq.runs import checkpoint
from acq.training.context import Context
from acq.training.loop import Stop, Training
from acq.training.phase import StepResult

SETTINGS: dict[str, Any] = {
    "generator": {"consistency_every": 2},
    "images": {"losses": {"consistency": 0.1}},
    "student": {"losses": {"probabilities": 0.5}, "augmentation": 0.5},
}
# amid each phase, at its end, and at the end of the run
STOPS = [
    ("first", 1),
    ("generator", 2),
    ("generator", 4),
    ("images", 3),
    ("images", 6),
    ("calibration", 1),
    ("student", 3),
    ("student", 5),
    ("conversion", 1),
]


class Counting:
    """A phase that is not in the package. It counts, and goes wrong in the steps that it is told."""

    def __init__(self, steps: int = 7, name: str = "counting", faults: Mapping[int, str] = {}) -> None:
        self.name, self.section, self.steps, self.faults = name, "numbers", steps, dict(faults)
        self.total = 0
        self.rates: list[float] = []

    def step(self, number: int, rate: float) -> StepResult:
        self.total += number + 1
        self.rates.append(rate)
        return StepResult({"total": torch.tensor(float(self.total))}, self.faults.pop(number, None))

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


class Satisfied(Counting):
    """A phase after whose third step nothing more is to be gained."""

    def step(self, number: int, rate: float) -> StepResult:
        result = super().step(number, rate)
        return StepResult(result.losses, enough="it suffices") if number == 2 else result


class Diverging(Counting):
    """A phase whose loss becomes NaN in one step, however often it is tried."""

    def step(self, number: int, rate: float) -> StepResult:
        result = super().step(number, rate)
        return StepResult({"total": result.losses["total"] * torch.nan}) if number == 2 else result


def context() -> Context:
    return training_().context


def loop(*phases: Counting) -> Training:
    return Training(context(), phases)


@dataclass
class Course:
    """A run that was not interrupted: its records, and states with deep copies of them."""

    records: list[tuple[Any, ...]]
    states: dict[tuple[str, int], dict[str, Any]]
    copies: dict[tuple[str, int], dict[str, Any]]

    def between(self, first: tuple[str, int], last: tuple[str, int]) -> list[tuple[Any, ...]]:
        places = [record[:2] for record in self.records]
        return self.records[places.index(first) + 1 : places.index(last) + 1]


@pytest.fixture(scope="module")
def course() -> Course:
    torch.manual_seed(0)
    training, course = training_(**SETTINGS), Course([], {}, {})
    for record in training.run():
        course.records.append(without_seconds(record))
        place = record.phase, record.step
        if place in STOPS:
            course.states[place] = training.state()
            course.copies[place] = copy.deepcopy(course.states[place])
    return course


def test_each_step_has_a_record(course: Course) -> None:
    """Phases come in order, steps count up, and the last step of each phase has the losses that have a weight."""
    phases = {"first": 1, "generator": 4, "images": 6, "calibration": 1, "student": 5, "conversion": 1}
    expected = [(name, step + 1, steps) for name, steps in phases.items() for step in range(steps)]
    assert [record[:3] for record in course.records] == expected
    values = {name: values.keys() for name, step, steps, values in course.records if step == steps}
    assert values["generator"] == {"classes", "statistics", "centre", "paired", "consistency"}
    assert values["images"] == {"classes", "statistics", "centre", "consistency"}
    assert values["student"] == {"logits", "probabilities", "features"}
    assert not values["first"]
    assert not values["calibration"]
    assert not values["conversion"]


def test_a_state_does_not_change_with_later_steps(course: Course) -> None:
    """What context, phases and loop return as their state is a snapshot."""
    for place, state in course.states.items():
        assert_same(state, course.copies[place])


@pytest.mark.parametrize(("stop", "following"), [*pairwise(STOPS)])
def test_a_restored_run_continues_exactly(
    course: Course, stop: tuple[str, int], following: tuple[str, int], tmp_path: Path
) -> None:
    """A state that was written and read leads a new run to the next stop bit for bit, and does not change."""
    checkpoint.save(tmp_path / "state", course.states[stop])
    state = checkpoint.load(tmp_path / "state")
    training = training_(**SETTINGS)
    training.restore(state)
    assert training.seconds == course.states[stop]["seconds"]
    found = [without_seconds(record) for record in run_until(training, *following)]
    assert found == course.between(stop, following)
    assert_same(training.state(), course.states[following])
    assert_same(state, course.states[stop])


def test_a_run_can_be_restored_in_place(course: Course) -> None:
    """The same objects go back to where they were, and repeat what they did."""
    training = training_(**SETTINGS)
    run_until(training, "images", 5)
    training.restore(course.states["generator", 2])
    found = [without_seconds(record) for record in run_until(training, "images", 3)]
    assert found == course.between(("generator", 2), ("images", 3))
    assert_same(training.state(), course.states["images", 3])


def test_a_finished_run_has_nothing_left(course: Course) -> None:
    """Running on yields no record and changes nothing."""
    training = training_(**SETTINGS)
    training.restore(course.states["conversion", 1])
    assert list(training.run()) == []
    assert_same(training.state(), course.states["conversion", 1])


def test_two_runs_are_equal_bit_for_bit(course: Course) -> None:
    """Equal settings and seeds give equal losses, weights, optimizers, images and random state."""
    training = training_(**SETTINGS)
    records = [without_seconds(record) for record in run_until(training, "images", 3)]
    assert records == course.records[: len(records)]
    assert_same(training.state(), course.states["images", 3])


def test_another_seed_is_another_run(course: Course) -> None:
    """The seed decides weights of the generator and everything that is drawn."""
    records = [without_seconds(record) for record in run_until(training_(seed=1, **SETTINGS), "generator")]
    assert [record[:3] for record in records] == [record[:3] for record in course.records[:5]]
    assert records[-1] != course.records[4]


def test_each_phase_trains_its_own_network(course: Course) -> None:
    """Only the first phase changes the generator, only later ones the student, and none the teacher."""
    student = {stop: state["context"]["student"] for stop, state in course.states.items()}
    generator = {stop: state["context"]["generator"] for stop, state in course.states.items()}
    first, trained = generator["generator", 2], generator["generator", 4]
    assert any(not torch.equal(value, first[name]) for name, value in trained.items())
    for stop in STOPS[2:]:
        assert_same(generator[stop], trained)
    untouched = {name: value for name, value in student["generator", 2].items() if "scale" not in name}
    assert_same({name: student["images", 6][name] for name in untouched}, untouched)
    assert any(not torch.equal(student["student", 5][name], value) for name, value in untouched.items())
    assert_same(training_().context.teacher.state_dict(), training_(seed=3).context.teacher.state_dict())


def test_the_teacher_does_not_change() -> None:
    """No value of its graph changes while generator, images and student are trained."""
    training = training_()
    before = copy.deepcopy(training.context.teacher.state_dict())
    run_until(training, "student")
    assert_same(training.context.teacher.state_dict(), before)


def test_a_phase_of_one_s_own_runs_in_the_loop() -> None:
    """The loop needs a name, steps, a step, a state and a way back, and nothing else."""
    first, second = Counting(12), Counting(3, "second")
    records = list(loop(first, second).run())
    assert [(r.phase, r.step, r.steps) for r in records] == [
        *[("counting", step + 1, 12) for step in range(12)],
        *[("second", step + 1, 3) for step in range(3)],
    ]
    reported = {(r.phase, r.step): r.values["total"] for r in records if r.values}
    assert reported == {("counting", 10): 55, ("counting", 12): 78, ("second", 3): 6}


def test_a_phase_of_one_s_own_is_part_of_the_state() -> None:
    """Between phases of the package it is saved and restored like them."""

    def extended() -> tuple[Training, Counting]:
        training, own = training_(images={"steps": 0}), Counting()
        generator, images, *_ = training.phases.values()
        return Training(training.context, [generator, own, images]), own

    whole, own = extended()
    run_until(whole, "counting", 3)
    state = whole.state()
    records = [without_seconds(record) for record in whole.run()]
    other, restored = extended()
    other.restore(state)
    assert [without_seconds(record) for record in other.run()] == records
    assert restored.total == own.total == 28
    assert_same(other.state(), whole.state())


def test_diverged_training_goes_back_once_with_a_smaller_rate() -> None:
    """After a fault, the phase continues from its last snapshot with 0.3 of the rate, and ends as if undisturbed."""
    phase = Counting(faults={3: "a fault"})
    training = loop(phase)
    with pytest.warns(
        UserWarning, match=r"diverged at counting step 4: a fault; continuing from step 0 with 0\.3 of the rate"
    ):
        records = list(training.run())
    assert [record.step for record in records] == [1, 2, 3, 1, 2, 3, 4, 5, 6, 7]
    assert phase.rates == [1.0] * 4 + [0.3] * 7
    assert phase.total == 28
    assert training.reduced == ["counting"]


def test_the_last_snapshot_is_at_most_fifty_steps_old() -> None:
    """A fault in step 61 costs the steps since step 50."""
    phase = Counting(70, faults={60: "a fault"})
    with pytest.warns(UserWarning, match="continuing from step 50"):
        records = list(loop(phase).run())
    assert [record.step for record in records] == [*range(1, 61), *range(51, 71)]
    assert phase.total == 70 * 71 / 2


def test_training_that_diverges_twice_fails() -> None:
    """The second fault in one phase ends the run, and the message names the setting to change."""
    training = loop(Counting(faults={3: "a fault", 5: "another fault"}))
    message = r"diverged at counting step 6: another fault; .*--set numbers\.learning_rate=\.\.\."
    with pytest.warns(UserWarning, match="step 4: a fault"), pytest.raises(RunError, match=message):
        list(training.run())


def test_a_loss_that_is_no_number_is_a_fault() -> None:
    """NaN is seen by the loop itself, and a phase in which it comes again fails."""
    with (
        pytest.warns(UserWarning, match="diverged at counting step 3: losses total nan"),
        pytest.raises(RunError, match="diverged at counting step 3: losses total nan"),
    ):
        list(loop(Diverging()).run())


def test_each_phase_may_go_back_once() -> None:
    """A phase that went back changes neither the rate of the next one nor its chance."""
    first, second = Counting(faults={1: "one"}), Counting(name="second", faults={2: "two"})
    with pytest.warns(UserWarning, match="diverged") as caught:
        list(loop(first, second).run())
    assert len(caught) == 2
    assert second.rates == [1.0] * 3 + [0.3] * 7


def test_a_restored_run_keeps_its_smaller_rate() -> None:
    """A state that was taken after going back continues with the reduced rate, and does not go back again."""
    first = loop(Counting(faults={1: "one"}))
    with pytest.warns(UserWarning, match="diverged"):
        run_until(first, "counting", 4)
    phase = Counting(faults={5: "two"})
    second = loop(phase)
    second.restore(first.state())
    with pytest.raises(RunError, match="two"):
        list(second.run())
    assert phase.rates == [0.3, 0.3]


def test_going_back_does_not_turn_back_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds count the steps that were lost, and leave out what happens between records."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Slow(Counting):
        def step(self, number: int, rate: float) -> StepResult:
            clock[0] += 1
            return super().step(number, rate)

    def paused(record: Record) -> float:
        clock[0] += 100
        return record.seconds

    training = Training(context(), [Slow(3, faults={1: "one"})], seconds=10.0)
    with pytest.warns(UserWarning, match="diverged"):
        seconds = [paused(record) for record in training.run()]
    assert seconds == [11, 13, 14, 15]


def on_an_accelerator(*phases: Counting) -> Training:
    stub = SimpleNamespace(
        rng=SimpleNamespace(device=torch.device("cuda")), any_process=bool, state=dict, restore=lambda state: None
    )
    return Training(stub, phases)  # type: ignore[arg-type]


def test_an_accelerator_is_looked_at_now_and_then() -> None:
    """There a fault is remembered until the next tenth step, or the last one of the phase."""
    for fault, seen in ((3, 10), (12, 15)):
        phase = Counting(15, faults={fault: "a fault"})
        with pytest.warns(UserWarning, match=f"diverged at counting step {seen}: a fault; continuing from step 0"):
            records: list[Record] = list(on_an_accelerator(phase).run())
        assert [record.step for record in records] == [*range(1, seen), *range(1, 16)]


def test_enough_leads_straight_to_the_last_phase() -> None:
    """The phase ends at that step, the phases between are left out, and the loop knows where and why."""
    training = loop(Counting(2, "before"), Satisfied(7, "middle"), Counting(5, "between"), Counting(1, "last"))
    places = [(record.phase, record.step, record.steps) for record in training.run()]
    assert places == [
        ("before", 1, 2), ("before", 2, 2), ("middle", 1, 7), ("middle", 2, 7), ("middle", 3, 3), ("last", 1, 1),
    ]  # fmt: skip
    assert training.stop == Stop("middle", 3, "it suffices")
    assert [training.steps_of(name) for name in ("before", "middle", "between", "last", "none")] == [2, 3, 0, 1, 0]


@pytest.mark.parametrize("done", [4, 5])
def test_a_stop_is_part_of_the_state(done: int) -> None:
    """A run that is restored just before or just after its stop leaves out the same phases."""

    def phases() -> tuple[Counting, ...]:
        return Counting(2, "before"), Satisfied(7, "middle"), Counting(5, "between"), Counting(1, "last")

    training, again = loop(*phases()), loop(*phases())
    for _ in islice(training.run(), done):
        pass
    again.restore(training.state())
    assert [record.phase for record in again.run()] == ["middle", "last"][done - 4 :]
    assert again.stop == Stop("middle", 3, "it suffices")
