"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from acq.core.values import Record

_LINE_EVERY = 15.0  # seconds between plain lines
_TITLES = {
    "first": "1/7 quantize on scenes",
    "few": "2/7 quantize on few images",
    "generator": "3/7 train the generator",
    "images": "4/7 refine images",
    "calibration": "5/7 calibrate the student",
    "student": "6/7 train the student",
    "conversion": "7/7 convert to integers",
}


@contextmanager
def watching(console: Console, *, verbose: bool = False) -> Iterator[Callable[[Record], None]]:
    """A watch that shows the records of a run.

    Args:
        console: Where records are shown.
        verbose: Print a line per record that has losses, besides the bars of a terminal.
    """
    if verbose and not console.is_terminal:
        yield _Lines(console, every=0.0)
    elif console.is_terminal:
        with _bars(console) as progress:
            yield _Both(_Bars(progress), _Lines(progress.console, every=0.0)) if verbose else _Bars(progress)
    else:
        yield _Lines(console)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=max(map(len, _TITLES.values())))),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # losses take what is left of the line, so the remaining time always shows
        TextColumn("[dim]{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
        refresh_per_second=4,
    )


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, record: Record) -> None:
        if record.phase not in self.tasks:
            title = _TITLES.get(record.phase, record.phase)
            self.tasks[record.phase] = self.progress.add_task(title, total=record.steps, figures="")
        task = self.tasks[record.phase]
        self.progress.update(task, completed=record.step, total=record.steps)  # a run may end early
        if record.values:
            self.progress.update(task, figures=_figures(record))


class _Both:
    def __init__(self, *watches: Callable[[Record], None]) -> None:
        self.watches = watches

    def __call__(self, record: Record) -> None:
        for watch in self.watches:
            watch(record)


class _Lines:
    """A line at the end of each phase and every few seconds; with ``every`` 0, a line per record that has losses."""

    def __init__(self, console: Console, every: float = _LINE_EVERY) -> None:
        self.console = console
        self.every = every
        self.last = -every
        self.began: dict[str, tuple[int, float]] = {}

    def __call__(self, record: Record) -> None:
        step, clock = self.began.setdefault(record.phase, (record.step, record.seconds))
        ended = record.step == record.steps
        now = time.monotonic()
        if not ended and (now - self.last < self.every or not (self.every or record.values)):
            return
        self.last = now
        per_step = (record.seconds - clock) / max(1, record.step - step)
        known = record.step > step and not ended
        left = f", {per_step * (record.steps - record.step):.0f} s left" if known else ""
        title = _TITLES.get(record.phase, record.phase)
        figures = f"  {_figures(record)}" if record.values else ""
        self.console.print(
            f"{title}: {record.step}/{record.steps} ({record.seconds:.0f} s{left}){figures}",
            highlight=False,
            soft_wrap=True,
        )


def _figures(record: Record) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in record.values.items())
