"""What the benchmarks share: whole runs whose synthetic images are made once, and tables that grow run by run."""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from acq import zoo
from acq.config import Config
from acq.files.images import read
from acq.files.limits import assignment, read_settings
from acq.recipe import Request, look, prepare, summarise
from acq.runs.folder import write_text
from acq.training.trainer import train

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks"
Run = dict[str, Any]


def quantized(network: zoo.Network, configs: Iterable[Config], data: Path) -> Iterator[Run]:
    """The summary of a run of each of ``configs``; bit for bit what `acq quantize` does, in less time.

    Configurations that agree in seed, generator and images have the same images: these are made once, and their
    seconds count in every run that uses them. Peak memory is the most that the process has held so far, so it is exact
    for the first run and an upper bound for the others.
    """
    imagined: dict[str, dict[str, Any]] = {}
    for config in configs:
        request = Request(network.model, network.preprocessing, config, {"model": network.name})
        trainer = prepare(request)
        key = json.dumps(request.config.model_dump(mode="json", include={"seed", "device", "generator", "images"}))
        if key in imagined:
            own = {"student": trainer.student.state_dict(), "student_optimizer": trainer.student_optimizer.state_dict()}
            trainer.restore({**copy.deepcopy(imagined[key]), **own})
        for record in train(trainer):
            if (record.phase, record.step) == ("images", record.steps):
                imagined.setdefault(key, copy.deepcopy(trainer.state()))
        images = read(data, input_size=network.preprocessing.input_size, classes=trainer.teacher.classes)
        settings = {"settings": _digest(request.config), "precision": request.config.precision}
        yield {"commit": COMMIT, **settings, **summarise(request, trainer, look(request, trainer), images)}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that choose networks, settings and data, as `acq quantize` has them, but several values at once."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help=".npz or folder of classes")
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ends", default="8")
    parser.add_argument("--addends", nargs="+", default=["8"])
    parser.add_argument("--placement", nargs="+", default=["deployable"])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    return parser


def configs(args: argparse.Namespace, *changes: Mapping[str, Any]) -> list[Config]:
    """All combinations that ``args`` ask for, seed by seed, ``changes`` laid over each."""
    given = [read_settings(args.config)] if args.config else []
    combinations = itertools.product(args.seeds, args.bits, args.placement, args.addends)
    return [
        Config.create(
            args.preset,
            *given,
            {"ends": _width(args.ends), "addends": _width(addends), "placement": placement},
            {"bits": bits, "seed": seed},
            *map(assignment, args.set),
            *changes,
        )
        for seed, bits, placement, addends in combinations
    ]


def _width(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _digest(config: Config) -> str:
    """A few letters that differ where any setting does, the seed apart."""
    return hashlib.sha256(config.model_copy(update={"seed": 0}).to_yaml().encode()).hexdigest()[:8]


def _commit() -> str:
    """The commit of the code, marked where files other than results differ from it."""
    root = RESULTS.parents[1]
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, check=True, stdout=subprocess.PIPE, text=True
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs"], cwd=root, check=False).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


COMMIT = _commit()  # of what was imported, whatever is committed while it runs


def command() -> str:
    """What the user typed, without the folders of what is outside the repository."""
    script, *words = sys.argv
    shown = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])


def keep(name: str, run: Run, same: Sequence[str]) -> dict[str, Any]:
    """Add ``run`` and the command that made it to the JSON results ``name``, in place of one that agrees with it in the
    keys ``same``; the results: ``runs`` and, where somebody wrote one, a ``note``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    with FileLock(path.with_suffix(".lock")):
        found = json.loads(path.read_text()) if path.exists() else {"runs": []}
        others = [other for other in found["runs"] if any(other.get(key) != run[key] for key in same)]
        found = {**found, "runs": [*others, {**run, "command": command()}]}
        write_text(path, json.dumps(found, indent=1) + "\n")
    return dict(found)


def page(name: str, lines: Sequence[str], note: str, commands: Iterable[str]) -> str:
    """Write and return a page of results: a table, what to know about it, and the commands that made it."""
    fence = ["```sh", *dict.fromkeys(commands), "```"]
    text = "\n".join([*lines, "", note, "", *fence, ""])
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{name}.md", text)
    return text


def table(name: str, found: Mapping[str, Any], keys: Sequence[str], figures: Sequence[str]) -> str:
    """Write and return the page of the results ``found``: a row for each value of ``keys``, means over its seeds."""
    runs = found["runs"]
    titles = [*keys, "seeds", "top-1 %", "drop", *figures, "seconds", "peak MB"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    rows: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        rows.setdefault(tuple(run.get(key) for key in (*keys, "settings")), []).append(run)
    for (*settings, _), row in rows.items():
        seeds = ", ".join(str(run["seed"]) for run in row)
        drop = statistics.mean(run["teacher_top1"] - run["top1"] for run in row)
        means = [f"{statistics.mean(_figure(run, figure) for run in row):.3f}" for figure in figures]
        seconds, memory = statistics.mean(run["seconds"] for run in row), max(run["peak_memory_mb"] for run in row)
        shown = ("-" if value is None else value for value in settings)
        cells = [*shown, seeds, top1_of(row), f"{drop:.2f}", *means, f"{seconds:.0f}", memory]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    note = f"{_where(runs)} {found.get('note', '')}".strip()
    return page(name, lines, note, (run["command"] for run in runs))


def top1_of(runs: Sequence[Run]) -> str:
    """Mean and standard deviation of top-1 over seeds, in percent."""
    top1 = [run["top1"] for run in runs]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{spread}"


def _figure(run: Run, name: str) -> float:
    value = run[name] if name in run else run["attention"][name]
    return float(value)


def _where(runs: Sequence[Run]) -> str:
    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(run.get(key, "unknown")) for run in runs))

    return (
        f"Teacher {each('teacher_top1')} % on {each('images')} images; {each('device')}, threads a run: "
        f"{each('threads')}, torch {each('torch')}, commit {each('commit')}."
    )
