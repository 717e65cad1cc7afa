"""The figures of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acq.errors import RequestError
from acq.report.page import environment
from acq.runs.folder import summary_of

Rows = list[tuple[str, list[str]]]


def rows_of(runs: Sequence[Path]) -> Rows:
    """Every figure of the runs' summaries and each run's value of it, nested ones dotted, \"\" where it has none.

    Figures that all runs share come last, so that what differs is seen first.

    Raises:
        RequestError: fewer than two runs are given, or one is not finished.
    """
    if len(runs) < 2:
        raise RequestError("give at least two run folders to compare")
    found = [_flat(_finished(run)) for run in runs]
    names = list(dict.fromkeys(name for figures in found for name in figures))
    rows = [(name, [figures.get(name, "") for figures in found]) for name in names]
    return sorted(rows, key=lambda row: len(set(row[1])) == 1)


def render(runs: Sequence[Path]) -> str:
    """The table as a page of its own; whatever comes from the runs is escaped."""
    return environment().get_template("comparison.html").render(runs=[run.name for run in runs], rows=rows_of(runs))


def _finished(run: Path) -> dict[str, Any]:
    found = summary_of(run)
    if found is None:
        raise RequestError(f"there is no finished run in {run}; give folders of acq quantize")
    return found


def _flat(figures: dict[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = "" if value is None else str(value)
    return flat
