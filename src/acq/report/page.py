"""The page of a finished run, from the files of its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from acq.core.scores import Scores
from acq.quantization.node_plan import Plan
from acq.report import figures
from acq.report.caveats import asks_for_centres, caveats
from acq.report.headline import headline
from acq.report.layers import SHOWN, advice, layer_rows
from acq.report.run_files import RunFiles, damage_reported, read_run
from acq.report.strips import read_strips
from acq.report.templates import environment

_WHOLE = ("class", "multilabel")  # kinds of which images as a whole are asked
_PHASES = {"few": "Few images", "generator": "Generator", "images": "Image refinement", "student": "Student"}


def render(run: Path, plan: Plan, command: str, class_names: Sequence[str] = ()) -> str:
    """The page as HTML. It loads nothing else, runs no script, and escapes every value of the run.

    Args:
        run: The folder of a finished run.
        plan: The plan of its student.
        command: The command that makes the run again.
        class_names: In class order; empty where they are not known.

    Raises:
        RequestError: The run is not finished, or a file is missing or damaged.
    """
    files, strips, made_by = read_run(run), read_strips(run), version("acquant")
    with damage_reported(run):
        answer = "class" if files.summary["output"]["kind"] == "class" else "answer"
        values = {
            **_figures(files, answer),
            **_tables(files, plan),
            "answer": answer,
            "named": _named(files.summary["output"], class_names),
        }
        return (
            environment()
            .get_template("run.html")
            .render(run=run.name, strips=strips, plan=plan, command=command, version=made_by, **values)
        )


def _named(output: Mapping[str, Any], class_names: Sequence[str]) -> Callable[[int], str]:
    """How an answer to an image as a whole is called; maps and sequences have none."""
    size = (int(output["size"]),)
    scores = Scores("class" if output["kind"] == "class" else "multilabel", size)
    return partial(scores.named, names=class_names)


def _tables(files: RunFiles, plan: Plan) -> dict[str, Any]:
    """Headline, tables and texts."""
    rows = layer_rows(files.diagnostics["layers"], plan)
    return {
        "summary": files.summary,
        "headline": headline(files.summary, files.latencies),
        "centre_std": files.settings["generator"]["centre_std"],
        "has_generator": files.summary["generator"]["agreement"] is not None,
        "follows": files.summary["attention"]["correlation"] is not None,
        "whole": files.summary["output"]["kind"] in _WHOLE,
        "follows_centre": asks_for_centres(files.settings),
        "images": files.diagnostics["images"],
        "layers": rows,
        "shown": SHOWN,
        "agreement_differs": len({row["agreement"] for row in rows}) > 1,
        "advice": advice(rows, plan),
        "caveats": caveats(files.summary, files.settings, plan),
        "settings": yaml.safe_dump(files.settings, sort_keys=False),
    }


def _figures(files: RunFiles, answer: str) -> dict[str, Any]:
    """Drawings, and the numbers that describe them in words; ``answer`` is what an answer is called."""
    found = files.diagnostics
    rows = found["statistics"]
    return {
        "centres": len(found["centres"]),
        "scatter": figures.scatter(found["centres"]) if found["centres"] else "",
        "spread": found["spread"],
        "spreads": figures.spreads(found["spread"], answer) if found["spread"] else "",
        "statistics": figures.statistics(rows) if rows else "",
        "norms": len(rows),
        "farthest": max(rows, key=lambda row: float(row["mean"] + row["deviation"]), default=None),
        "curves": _curves(files.records),
    }


def _curves(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The title and the drawing of each phase that logged losses."""
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        phases.setdefault(str(record["phase"]), []).append(record)
    return [
        (_PHASES.get(phase, phase), figures.curves(rows, f"curves{number}"))
        for number, (phase, rows) in enumerate(phases.items())
    ]
