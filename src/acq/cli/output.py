"""What commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from acq.quantization.plan import Plan

_WIDEST = 10_000  # columns of a table in a file


def notes(quiet: bool = False) -> Console:
    """The console for progress and notes; silent if ``quiet``."""
    return Console(stderr=True, quiet=quiet)


def note(text: str, quiet: bool = False) -> None:
    """Print a note on standard error."""
    notes(quiet).print(Text(f"note: {text}"), soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(shortened(value)))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text on standard output, as they are."""
    for line in lines:
        print(line)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> None:
    """Print a table on standard output, as wide as it is; on a terminal long cells are folded.

    Args:
        columns: Titles; all empty for a table without.
        rows: Cells as text.
        numbers_from: Index of the first column that is aligned to the right.
    """
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        right = numbers_from is not None and index >= numbers_from
        table.add_column(Text(column), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if Console().is_terminal else _WIDEST).print(table)


def print_plan(plan: Plan) -> None:
    """Print a plan, and the operators that stay in floating point with the reason of each."""
    kept = plan.float_nodes
    print_lines([str(plan), "", f"{len(kept)} operators stay in floating point" + (":" if kept else "")])
    print_lines(f"  {node.name} ({node.operator}): {node.note}" for node in kept)


def shortened(value: Any) -> Any:
    """The same value with floats of at most six significant digits."""
    if isinstance(value, Mapping):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
