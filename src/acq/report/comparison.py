"""The figures of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acq.errors import RequestError
from acq.report.templates import environment
from acq.runs.folder import summary_of

Rows = list[tuple[str, list[str]]]


def rows_of(runs: Sequence[Path]) -> Rows:
    """The figures of all runs, those that differ first.

    Args:
        runs: At least two run folders.

    Returns:
        Each figure's name, with dots if it is nested, and one value per run as text. A missing value is empty.

    Raises:
        RequestError: Fewer than two runs are given, or one is missing, not finished or damaged.
    """
    if len(runs) < 2:
        raise RequestError("give at least two run folders to compare")
    summaries = [_flat(summary_of(run)) for run in runs]
    names = list(dict.fromkeys(name for figures in summaries for name in figures))
    rows = [(name, [figures.get(name, "") for figures in summaries]) for name in names]
    return sorted(rows, key=lambda row: len(set(row[1])) == 1)


def render(names: Sequence[str], rows: Rows) -> str:
    """The table as a page. Every value of a run is escaped.

    Args:
        names: Of the runs.
        rows: As ``rows_of`` gives them.
    """
    return environment().get_template("comparison.html").render(runs=names, rows=rows)


def _flat(figures: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = "" if value is None else str(value)
    return flat
