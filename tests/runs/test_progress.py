from __future__ import annotations

import io

import pytest
from rich.console import Console

from acq.core.values import Record
from acq.runs import progress
from acq.runs.progress import watching


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(records: list[Record], terminal: bool, verbose: bool = False) -> str:
    """What a console shows of some records."""
    made = console(terminal)
    with watching(made, verbose=verbose) as watch:
        for record in records:
            watch(record)
    return text_of(made)


def records(steps: int = 20) -> list[Record]:
    """A whole run of short phases."""
    generator = [Record("generator", i + 1, steps, 0.1 * i, {"classes": 1 / (i + 1)}) for i in range(steps)]
    images = [Record("images", i + 1, steps, 2.5 + 0.05 * i, {"centre": 0.5}) for i in range(steps)]
    student = [Record("student", i + 1, steps, 5 + 0.1 * i, {"logits": 0.12345}) for i in range(steps)]
    once = [Record(phase, 1, 1, 4.0, {}) for phase in ("calibration", "conversion")]
    return [*generator, *images, once[0], *student, once[1]]


def test_each_phase_has_a_line_at_its_end() -> None:
    """Without a terminal a short run is a few plain lines, the last of each phase with its losses."""
    lines = shown(records(), terminal=False).splitlines()
    assert [line for line in lines if "20/20" in line or "1/1" in line] == [
        "3/7 train the generator: 20/20 (2 s)  classes 0.05",
        "4/7 refine images: 20/20 (3 s)  centre 0.5",
        "5/7 calibrate the student: 1/1 (4 s)",
        "6/7 train the student: 20/20 (7 s)  logits 0.123",
        "7/7 convert to integers: 1/1 (4 s)",
    ]
    assert len(lines) == 6  # and the first step of all


def test_a_long_phase_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a second per step there is a line every fifteen seconds with the seconds that are left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    plain = console()
    with watching(plain) as watch:
        for step in range(1, 61):
            now[0] = 100.0 + step
            watch(Record("generator", step, 60, float(step), {}))
    lines = text_of(plain).splitlines()
    assert [int(line.split(": ")[1].split("/")[0]) for line in lines] == [1, 16, 31, 46, 60]
    assert "(31 s, 29 s left)" in lines[2]
    assert "left" not in lines[-1]


def test_a_terminal_has_a_bar_per_phase() -> None:
    """Each phase is named, counted to its end and followed by its losses."""
    text = shown(records(), terminal=True)
    for words in ("train the generator", "refine images", "calibrate", "train the student", "convert to integers"):
        assert words in text
    for words in ("20/20", "1/1", "classes 0.05", "centre 0.5", "logits 0.123"):
        assert words in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_resumed_run_is_shown_from_where_it_is(terminal: bool) -> None:
    """The first record may be any, and an unknown phase is shown by its own name."""
    text = shown([Record("student", 15, 20, 9.0, {}), Record("student", 20, 20, 9.5, {})], terminal)
    assert "20/20" in text
    assert "polish" in shown([Record("polish", 1, 1, 0.0, {})], terminal)


def test_a_phase_that_ends_early_is_done() -> None:
    """Its bar counts the steps that were done, of as many."""
    early = [Record("student", 10, 60, 1.0, {}), Record("student", 20, 20, 2.0, {})]
    assert "20/20" in shown(early, terminal=True)


@pytest.mark.parametrize("terminal", [False, True])
def test_verbose_gives_all_losses_line_by_line(terminal: bool) -> None:
    """Every record with losses has a line, and one without has a line at the end of a phase only."""
    text = shown([*records(3), Record("student", 2, 4, 9.0, {})], terminal, verbose=True)
    lines = [line for line in text.splitlines() if "/7 " in line and ": " in line]
    steps = [line.split(": ")[1].split(" ")[0] for line in lines]
    assert steps == ["1/3", "2/3", "3/3"] * 2 + ["1/1"] + ["1/3", "2/3", "3/3"] + ["1/1"]


def test_verbose_keeps_the_bars_of_a_terminal() -> None:
    """A bar with the remaining time is shown below the lines."""
    text = shown(records(3), terminal=True, verbose=True)
    assert "left" in text
    assert "━" in text
    assert "━" not in shown(records(3), terminal=False, verbose=True)


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_to_watch_is_no_error(terminal: bool) -> None:
    """A finished run that is resumed has no records, and no line."""
    assert "/" not in shown([], terminal)
