"""Reads the files of a finished run that its page shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acq.errors import RequestError, first_line
from acq.files.documents import from_json, from_yaml, read_text
from acq.runs.folder import summary_of
from acq.runs.names import CONFIG, DIAGNOSTICS, LATENCY, METRICS


@dataclass(frozen=True)
class RunFiles:
    """The content of a finished run.

    Attributes:
        summary: Its figures.
        diagnostics: Sensitivities, batch-norm statistics and centres.
        latencies: One measurement per number of threads and batch size; empty if none was made.
        records: The logged losses in order, each with phase, step and values.
        settings: The whole tree of settings.
    """

    summary: dict[str, Any]
    diagnostics: dict[str, Any]
    latencies: list[dict[str, Any]]
    records: list[dict[str, Any]]
    settings: dict[str, Any]


def read_run(run: Path) -> RunFiles:
    """Read a finished run.

    Raises:
        RequestError: The run is not finished, or a file is missing or damaged.
    """
    summary = summary_of(run)
    with damage_reported(run / DIAGNOSTICS):
        diagnostics = dict(from_json(read_text(run / DIAGNOSTICS)))
    with damage_reported(run / METRICS):
        records = [dict(from_json(line)) for line in read_text(run / METRICS).splitlines()]
    with damage_reported(run / CONFIG):
        settings = dict(from_yaml(read_text(run / CONFIG))["config"])
    latencies: list[dict[str, Any]] = []
    if (run / LATENCY).exists():
        with damage_reported(run / LATENCY, "run acq benchmark again, or delete it"):
            latencies = [_latency(row) for row in from_json(read_text(run / LATENCY))["latencies"]]
    return RunFiles(summary, diagnostics, latencies, records, settings)


@contextmanager
def damage_reported(path: Path, way_out: str = "quantize again") -> Iterator[None]:
    """Report any fault of a file in one line, because its content may be anything.

    Args:
        path: The file, or the run folder.
        way_out: What the user can do.

    Raises:
        RequestError: The block failed.
    """
    try:
        yield
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"there is no {error.filename or path}; {way_out}") from None
    except Exception as error:
        raise RequestError(f"{path} is damaged ({first_line(error, typed=True)}); {way_out}") from error


def _latency(row: dict[str, Any]) -> dict[str, Any]:
    """The figures of one measurement, in milliseconds per batch."""
    counts = {name: int(row[name]) for name in ("threads", "batch")}
    return {**counts, **{name: float(row[name]) for name in ("float_ms", "integer_ms", "latency_ratio")}}
