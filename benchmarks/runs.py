"""Shared by the benchmarks: runs, results that grow row by row as JSON, and pages made from them."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from acq import zoo
from acq.config import Config, differences
from acq.files.atomic import write_atomically
from acq.files.documents import assignment, read_settings
from acq.files.images import read
from acq.recipe import Request, prepare
from acq.runs.summary import measure
from acq.training.context import Context

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks"
IMAGE_SETTINGS = {"seed", "device", "precision", "generator", "images"}  # all that decides the synthetic images
Row = dict[str, Any]


def quantized(
    network: zoo.Network, configs: Iterable[Config], data: Path, look: Callable[[Context], Row] = lambda _: {}
) -> Iterator[Row]:
    """Quantize a network with each configuration, in this process, and yield the summaries with what ``look`` finds.

    The figures are those of ``acq quantize``. Neighbours with the same image settings share their images, and the
    seconds of these images count in each run. A run that may stop after few images makes its own.
    Peak memory is that of the process so far, so it is an upper bound.
    """
    shared: tuple[str, dict[str, Any]] | None = None
    for config in configs:
        prepared = prepare(Request.of(network, config, {}))
        training, context = prepared.training, prepared.training.context
        key = prepared.config.model_dump_json(include=IMAGE_SETTINGS)
        if shared is not None and shared[0] == key and "few" not in training.phases:
            if "first" in training.phases:
                next(training.run())  # that of the neighbour may have other settings
            training.restore(_with_student_of(training.state(), shared[1]))
        for record in training.run():
            if (record.phase, record.step) == ("images", record.steps):
                shared = key, training.state()
        labelled = read(data, preprocessing=network.preprocessing, output=context.teacher.output)
        figures, _ = measure(training, prepared.graph, labelled)
        yield {
            "model": network.name,
            **prepared.config.headline(),
            "settings": settings_of(config),
            **figures,
            **look(context),
            **origin(),
        }


def _with_student_of(state: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """The state ``images``, after the phase of that name, with the untrained and the first student of ``state``."""
    context = {**images["context"], **{name: state["context"][name] for name in ("student", "candidates")}}
    made = {name: images["phases"][name] for name in ("generator", "images") if name in images["phases"]}
    return {**images, "context": context, "phases": {**state["phases"], **made}}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of ``acq quantize`` that choose network, settings and data, with several values at once."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled images: .npz or a folder of classes")
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--first-last-bits", default="8", metavar="8|same")
    parser.add_argument("--add-bits", default="8", metavar="8|same")
    parser.add_argument("--placement", default="deployable")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    return parser


def configs(args: argparse.Namespace, *changes: Mapping[str, Any]) -> list[Config]:
    """The configurations of all seeds and bit-widths of ``args``, seed by seed, with ``changes`` on top."""
    given = [read_settings(args.config)] if args.config else []
    widths = {"first_last_bits": _bits(args.first_last_bits), "add_bits": _bits(args.add_bits)}
    return [
        Config.create(
            args.preset,
            *given,
            {**widths, "placement": args.placement, "bits": bits, "seed": seed},
            *map(assignment, args.set),
            *changes,
        )
        for seed, bits in itertools.product(args.seeds, args.bits)
    ]


def _bits(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def settings_of(config: Config) -> Row:
    """The settings that differ from those of the preset, by dotted key, without the seed."""
    found = differences(config, Config.create(config.preset, {"bits": config.bits}))
    return {key: found[key] for key in found if key != "seed"}


def _commit() -> str:
    """The commit of the code, marked where files other than documentation differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown-dirty"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs"], check=False).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


COMMIT = _commit()  # of the code that was imported, whatever is committed later


def origin() -> Row:
    """Commit and date of a row that is made now."""
    return {"commit": COMMIT, "date": datetime.now(UTC).date().isoformat()}


def command(script: str, words: Sequence[str] | None) -> str:
    """The command line of a benchmark, in which files outside the repository are shown in ``data/``."""
    given = sys.argv[1:] if words is None else words
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(_shown, given)])


def _shown(word: str) -> str:
    path = Path(word)
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return f"data/{path.name}" if path.is_absolute() or word.startswith("..") else word


def load(name: str) -> list[Row]:
    """The rows of a benchmark so far."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


def history(name: str) -> list[Row]:
    """The rows that a benchmark has and those that it had in any commit of the repository, the oldest first."""
    git, file = ["git", "-C", str(RESULTS)], f"{name}.json"
    commits = subprocess.run([*git, "log", "--reverse", "--format=%H", "--", file], capture_output=True, check=False)
    found = {}
    for commit in commits.stdout.decode().split():
        shown = subprocess.run([*git, "show", f"{commit}:./{file}"], capture_output=True, check=False)
        if not shown.returncode:  # the file was there
            found |= {json.dumps(row, sort_keys=True): row for row in json.loads(shown.stdout)["rows"]}
    return list((found | {json.dumps(row, sort_keys=True): row for row in load(name)}).values())


def by_seed(rows: Iterable[Row]) -> dict[int, Row]:
    """The rows by seed; of several with one seed, the last."""
    return {row["seed"]: row for row in rows}


def has(name: str, wanted: Row) -> bool:
    """Whether a benchmark has a row with these values."""
    return any(all(row.get(key) == value for key, value in wanted.items()) for row in load(name))


def keep(name: str, row: Row, identity: Sequence[str]) -> list[Row]:
    """Add a row to the results of a benchmark, in place of the row with the same values of ``identity``.

    Returns:
        All rows. Several processes may add rows at the same time.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    with FileLock(path.with_suffix(".lock")):
        others = [other for other in load(name) if any(other.get(key) != row.get(key) for key in identity)]
        rows = [*others, row]
        write_atomically(path, json.dumps({"rows": rows}, indent=1) + "\n")
    return rows


def groups(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """The rows that agree in all ``keys``, group by group in order of first appearance, each sorted by seed."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(value(row, key)) for key in keys), []).append(row)
    return [sorted(group, key=lambda row: int(row["seed"])) for group in found.values()]


def value(row: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def mean(rows: Sequence[Row], key: str, form: str = ".3f") -> str:
    """The mean of a figure over the rows that have it; a dash where none has it."""
    values = [value(row, key) for row in rows]
    known = [float(each) for each in values if each is not None]
    return format(statistics.mean(known), form) if known else "-"


def most(rows: Sequence[Row], key: str) -> Any:
    """The largest value of a figure; None where no row has it."""
    return max((row[key] for row in rows if row.get(key) is not None), default=None)


def top1(rows: Sequence[Row]) -> str:
    """Mean and standard deviation of top-1 over the rows, in percent."""
    return _mean_and_deviation([float(row["top1"]) for row in rows], ".2f")


def drop(rows: Sequence[Row]) -> str:
    """The mean loss of top-1, in percentage points."""
    return f"{statistics.mean(row['teacher_top1'] - row['top1'] for row in rows):.2f}"


def gain(changes: Sequence[float]) -> str:
    """The mean of changes in percentage points, ± their standard deviation where there are several."""
    return _mean_and_deviation(changes, "+.2f")


def _mean_and_deviation(values: Sequence[float], form: str) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{format(statistics.mean(values), form)}{deviation}"


def each(rows: Iterable[Row], key: str) -> str:
    """The different values of a key, separated by commas."""
    return ", ".join(dict.fromkeys(str(value(row, key)) for row in rows))


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*lines, *(f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows)]


def accuracy_table(rows: Sequence[Row], keys: Sequence[str], figures: Mapping[str, str]) -> list[str]:
    """A table with one line per value of ``keys`` and settings: accuracy, ``figures`` (title by key), and cost."""
    titles = [*keys, "seeds", "top-1 %", "drop", *figures.values(), "seconds", "peak MB", "commit"]
    lines = []
    for group in groups(rows, (*keys, "settings")):
        cells = [group[0].get(key) for key in keys]
        shown = [mean(group, figure) for figure in figures]
        cost = [mean(group, "seconds", ".0f"), most(group, "peak_memory_mb"), each(group, "commit")]
        lines.append([*cells, each(group, "seed"), top1(group), drop(group), *shown, *cost])
    return table(titles, lines)


def write_page(name: str, title: str, *parts: Sequence[str]) -> str:
    """Write and return the page ``name`` from parts of lines, with an empty line between two parts."""
    text = "\n\n".join([f"# {title}", *("\n".join(part) for part in parts if part)]) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / f"{name}.md", text)
    return text


def fence(commands: Iterable[str]) -> list[str]:
    """Commands in a block, each once."""
    return ["```text", *dict.fromkeys(commands), "```"]
