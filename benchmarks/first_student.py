"""Measures the first student of each case on real images, beside what the whole run ends with.

    python benchmarks/first_student.py --data-folder data --only 'signs/*'

No run is to end below its first student by more than chance. A case needs its row of docs/results.md first. Each result
becomes a row of docs/benchmarks/first_student.json, from which the page is made. A run that has its row is skipped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import conformance_page
import runs
from cases import CASES, Case

from acq.files.images import read
from acq.quantization.integers import convert_to_integers
from acq.recipe import Request, prepare
from acq.runs.summary import accuracy_figures
from acq.training.selection import FIRST

NAME = "first_student"
IDENTITY = ("case", "seed", "engine")
HOW = [
    "A run begins with a student that scenes calibrate and that is rounded layer by layer. It ends with the student",
    "that is nearest to the teacher on synthetic images. Here both meet real images, which no run sees.",
    "",
    "- **First, end:** top-1 in percent of the first student and of the run, mean over seeds ± standard deviation.",
    "- **Gain:** the second minus the first, mean over seeds ± standard deviation.",
    "- **Kept:** the student with which each run ends.",
    "- **Commits:** of the first students, then of the runs.",
]


def measure(case: Case, seed: int, data: Path) -> runs.Row:
    """The accuracy of the first student of a run."""
    network = case.network.resolved(data)
    training = prepare(Request.of(network, case.config(seed), {})).training
    record, context = next(training.run()), training.context
    if record.phase != FIRST:
        raise ValueError(f"{case.name} does not begin with a first student")
    context.student.load_state_dict(context.candidates[FIRST])
    convert_to_integers(context.student)
    output, known = context.teacher.output, network.preprocessing
    labelled = read(data / case.network.data, preprocessing=known, output=output)
    found = accuracy_figures(context.teacher, context.student.eval(), known, labelled)
    names = ("teacher_top1", "top1", "test_images")
    return {
        "case": case.name, "seed": seed, "engine": case.network.engine, **{name: found[name] for name in names},
        "seconds": round(record.seconds, 1), **runs.origin(),
    }  # fmt: skip


def page(cases: Sequence[Case]) -> str:
    """Write and return the page on all runs that have both rows."""
    lines = [line for case in cases for line in compared(case)]
    titles = ["case", "seeds", "float", "first", "end", "gain", "kept", "seconds of the first", "commits"]
    commands = runs.fence(["python benchmarks/first_student.py --data-folder data"])
    return runs.write_page(NAME, "The first student and the whole run", HOW, runs.table(titles, lines), commands)


def compared(case: Case) -> Iterator[list[Any]]:
    """The line of a case; none where no seed has both rows."""
    first, end = present(NAME, case), present("conformance", case)
    seeds = sorted(first.keys() & end.keys())
    if not seeds:
        return
    gains = [end[seed]["top1"] - first[seed]["top1"] for seed in seeds]
    yield [
        f"`{case.name}`", ", ".join(map(str, seeds)), f"{first[seeds[0]]['teacher_top1']:.2f}",
        *(runs.top1([rows[seed] for seed in seeds]) for rows in (first, end)), runs.gain(gains),
        ", ".join(dict.fromkeys(end[seed]["student_loss"]["selected"] for seed in seeds)),
        f"{statistics.mean(first[seed]['seconds'] for seed in seeds):.0f}",
        ", ".join(dict.fromkeys(row["commit"] for rows in (first, end) for row in (rows[seed] for seed in seeds))),
    ]  # fmt: skip


def present(name: str, case: Case) -> dict[int, runs.Row]:
    """The rows of a case with its present engine, by seed."""
    return runs.by_seed(conformance_page.present(case, runs.load(name)))


def main(words: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("data"), help="folder of the test data")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cases whose names contain it")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    args = parser.parse_args(words)
    for case in [] if args.page else cases:
        if not fnmatch(case.name, f"*{args.only}*") or case.obstacle(args.data_folder) is not None:
            continue
        for seed in sorted(present("conformance", case).keys() - present(NAME, case).keys()):
            row = measure(case, seed, args.data_folder)
            runs.keep(NAME, row, IDENTITY)
            print(f"{case.name} seed {seed}: {row['teacher_top1']} % -> {row['top1']} %", flush=True)
    page(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
