"""Write the page of a run, and compare runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acq.api.files import write_or_refuse
from acq.config import Config, differences
from acq.core.outputs import Traits
from acq.errors import RequestError, first_line
from acq.network.operators import BATCH_NORM
from acq.quantization.node_plan import Plan
from acq.runs import student_file
from acq.runs.folder import require_run, summary_of
from acq.runs.names import QUANTIZATION, REPORT


def write_report(run: str | Path) -> Path:
    """Write a finished run's page, ``RUN/report.html``. It is one file that loads nothing else.

    Raises:
        RequestError: The extra ``report`` is not installed, the run is not finished or damaged, or the page cannot be
            written.
    """
    try:
        from acq.report.page import render
    except ModuleNotFoundError as error:
        raise RequestError(f"the report needs {error.name}; install it with pip install 'acquant[report]'") from error
    folder = Path(run)
    require_run(folder)
    student = student_file.load_description(folder)
    try:
        spatial = summary_of(folder).get("features", "") is not None  # runs of before had features
        traits = student.output.traits(normalised=_has_norms(student.plan), spatial=spatial)
        command = _command(student.facts, folder, traits)
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{folder / QUANTIZATION} is damaged ({first_line(error)}); quantize again") from error
    write_or_refuse(folder / REPORT, render(folder, student.plan, command, student.class_names))
    return folder / REPORT


def compare(runs: Sequence[str | Path], html: str | Path | None = None) -> list[tuple[str, list[str]]]:
    """Each figure of the runs' summaries with the value of every run, as text; what differs comes first.

    Args:
        runs: At least two run folders.
        html: Also write the table as a page.

    Raises:
        RequestError: The extra ``report`` is not installed, fewer than two runs are given, one is not finished, or the
            page cannot be written.
    """
    try:
        from acq.report.comparison import render, rows_of
    except ModuleNotFoundError as error:
        raise RequestError(f"comparing needs {error.name}; install it with pip install 'acquant[report]'") from error
    if html is not None and Path(html).suffix != ".html":
        raise RequestError(f"{html} does not end in .html; give the name of a page as --html")
    folders = list(map(Path, runs))
    rows = rows_of(folders)
    if html is not None:
        write_or_refuse(Path(html), render([folder.name for folder in folders], rows))
    return rows


def _has_norms(plan: Plan) -> bool:
    """Whether the network had batch norms over images."""
    return any(node.operator == BATCH_NORM and len(node.shape) == 4 for node in plan.nodes)


def _command(facts: Mapping[str, Any], run: Path, traits: Traits) -> str:
    """The command that makes a run again, with the settings that differ from its preset."""
    origin, known = facts["origin"], facts["preprocessing"]
    config = Config.model_validate(facts["config"])
    _, height, width = known["input_size"]
    usual = Config.create(config.preset, {"bits": config.bits}).fitted(replace(traits, pixels=height * width))
    parts = ["acq", "quantize", str(origin["model"]), "--preset", config.preset, "--bits", config.bits]
    for option, value in (
        ("checkpoint", origin.get("checkpoint")),
        ("checkpoint-key", origin.get("checkpoint_key")),
        ("model-args", origin.get("arguments")),
    ):
        parts += [f"--{option}", value if isinstance(value, str) else json.dumps(value)] if value else []
    takes_bytes = origin.get("form", {}).get("kind") == "uint8"  # such a file normalises images itself
    for name in ("input_size", *(() if takes_bytes else ("mean", "std"))):
        parts += [f"--{name.replace('_', '-')}", ",".join(map(str, known[name]))]
    parts += ["--resize", str(known["framing"]["resize"])] if "framing" in known else []
    for key, value in differences(config, usual).items():
        parts += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join([*parts, "--out", str(run)])
