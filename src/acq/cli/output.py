"""What commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from acq.core.outputs import agreement_of, is_cosine
from acq.errors import Note
from acq.quantization.node_plan import Plan
from acq.runs.rehearsal import Rehearsal

if TYPE_CHECKING:
    from acq.export.check import Parity

_WIDEST = 10_000  # columns of a table in a file


def notes(quiet: bool = False) -> Console:
    """The console for progress and notes; silent if ``quiet``."""
    return Console(stderr=True, quiet=quiet)


def note(text: str, quiet: bool = False) -> None:
    """Print a note on standard error."""
    notes(quiet).print(Text(f"note: {text}"), soft_wrap=True)


@contextmanager
def without_notes(quiet: bool) -> Iterator[None]:
    """No notes of the library within the block if ``quiet``; warnings still pass."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore", Note)
        yield


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


def plan_rows(plan: Plan, rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """The nodes of a plan as JSON values; ``file`` says how an exported file computes each one."""
    return [{**row, "file": rehearsal.place_of(node)} for row, node in zip(plan.rows(), plan.nodes, strict=True)]


def print_plan(plan: Plan, rehearsal: Rehearsal) -> None:
    """Print a plan with what engines run on integers, and why the other operators stay in floating point."""
    kept, between = plan.missed_nodes, len(plan.float_nodes) - len(plan.missed_nodes)
    print_lines([plan.table({node.name: rehearsal.place_of(node) for node in plan.nodes}), ""])
    if plan.format.weights_alone:
        print_lines(["weights alone are quantized: engines compute in floating point, from a smaller file"])
    else:
        if between:
            print_lines([f"{between} operators between layers are computed in floating point by this placement"])
        print_lines(
            [f"{len(kept)} {'other ' if between else ''}operators stay in floating point" + (":" if kept else "")]
        )
        print_lines(f"  {node.name} ({node.operator}): {node.note}" for node in kept)
    engines = f"the file was written from the untrained student and opened on {', '.join(rehearsal.engines)}"
    print_lines(["", *([engines] if rehearsal.engines else []), *rehearsal.notes()])


def parity_figures(parity: Parity) -> dict[str, Any]:
    """The comparison of a file with its student as JSON values."""
    openvino = parity.openvino
    return {
        **asdict(parity),
        "optimised": asdict(parity.optimised),
        "integer": parity.integer,
        "layers": parity.layers,
        "openvino": None if openvino is None else asdict(openvino),
    }


def parity_lines(parity: Parity) -> list[str]:
    """The comparison of a file with its student, one line per engine, and one if the student differs from itself."""
    verb = "returns the student's values with" if is_cosine(parity.kind) else "decides like the student on"
    lines = [
        f"{name:<13}{verb} {agreement_of(parity.kind, found.match.agreement, f'{parity.images} images')} "
        f"(largest difference {found.match.difference:.2g}), {found.integer} of {found.layers} layers in integers"
        for name, found in parity.engines.items()
    ]
    lines += [f"{name:<13}{failure}" for name, failure in parity.failures.items()]
    if parity.self_agreement is not None:
        alike = agreement_of(parity.kind, parity.self_agreement, "images with noise of 1e-5")
        own = "returns its own values with" if is_cosine(parity.kind) else "decides like itself on"
        lines.append(f"{'student':<13}{own} {alike}")
    return lines


def shortened(value: Any) -> Any:
    """The same value with floats of at most six significant digits."""
    if isinstance(value, Mapping):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
