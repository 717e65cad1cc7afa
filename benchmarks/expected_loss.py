"""Fits and judges the law of the expected loss (``acq.analysis.expected_loss``) on the rows of docs/results.md.

    python benchmarks/expected_loss.py
    python benchmarks/expected_loss.py --data-folder data

It reads conformance.json, first_student.json and expected_loss.json in docs/benchmarks, writes expected_loss.md there,
and fails if the package has other numbers than the fit gives. With a data folder it first measures the short runs of
SHORT that have no row in expected_loss.json yet. Each network is left out in turn: the others fit the law and its
spread, and the network judges them. A network and its file with folded batch norms are left out together.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import case_networks
import conformance
import conformance_page
import runs
from cases import CASES, Case

from acq.analysis.expected_loss import FITTED, ExpectedLoss, Law
from acq.training.selection import FIRST

NAME = "expected_loss"
COVERED = 0.93  # share of the rows of left-out networks that the spread reaches; the range promises 90 %
FACTORS = tuple(range(20, 401))
QUICK = ("generator.steps=0", "images.count=64", "images.steps=40", "student.steps=0")
SHORT = tuple(  # the law needs networks that lose more than a point
    Case(network, bits, QUICK, seeds=(0,))
    for network, bits in (
        (case_networks.BUNDLED, "w3a3"), (case_networks.PUBLIC, "w3a3"), (case_networks.SIGNS, "w3a3"),
        (case_networks.GROUPNORM, "w3a3"), (case_networks.NORM_FREE, "w3a3"), (case_networks.VIT, "w3a3"),
        (case_networks.VIT, "w4a4"), (case_networks.MOBILENET, "w4a8"), (case_networks.LITE0, "w4a4"),
        (case_networks.ETINYNET, "w8a8"),
    )
)  # fmt: skip
HOW = [
    "`benchmarks/expected_loss.py` writes this page; do not edit it.",
    "",
    "A finished run estimates how much accuracy its student loses on real images. It knows its relative error `e`:",
    "the mean of the relative squared errors of logits and features, weighted as in training (1 and 4). It is",
    "`student_loss` in `summary.json` divided by 5, on augmented synthetic images and new scenes.",
    "",
    "The law is `loss = factor * e^2` in percentage points. The range goes from the loss divided by the spread to the",
    "loss times the spread, and 0.7 points beyond both. That is the chance of 1,000 test images.",
    "The square says that small errors hardly ever change the class.",
    "",
    "- **Fit:** the factor with the least sum of absolute errors of `log(1 + loss)`.",
    f"- **Spread:** {100 * COVERED:.0f} % of the rows of left-out networks are within it.",
    "- **Judged:** each network is left out in turn. The others give the law, spread included, that judges its rows.",
    "- **Rows:** all classifiers of [docs/results.md](../results.md) with these figures. Where a first student was",
    "  measured and not kept, it is a row too ([its page](first_student.md)). Short runs (64 images, 40 steps, no",
    "  generator, no training) are there because few default runs lose more than a point.",
    "- **Limits:** share, 0.7 points and the form of the law were chosen on these rows. Few lose more than 5 points.",
    "  All runs have the usual weights of losses, and all networks features with places.",
    "- **Where it is weak:** the range holds the loss less often where more than a point is expected. The table says",
    "  how often. There take it as a warning and measure on real images.",
]


@dataclass(frozen=True)
class Student:
    """A student of a measured run: its relative error, and the loss of accuracy in points.

    ``ends`` says whether a run with default settings ended with it.
    """

    network: str
    run: str
    bits: str
    seed: int
    name: str
    ends: bool
    error: float
    loss: float


@dataclass(frozen=True)
class Judged:
    """A student and what the other networks expect of it."""

    student: Student
    expected: ExpectedLoss

    @property
    def within(self) -> bool:
        """Whether the range holds the measured loss."""
        return self.expected.low <= self.student.loss <= self.expected.high

    @property
    def width(self) -> float:
        """Of the range, in points."""
        return self.expected.high - self.expected.low


def students() -> list[Student]:
    """All measured students that have what the law needs."""
    return measured([*runs.load("conformance"), *runs.load(NAME)], runs.load("first_student"))


def measured(rows: Sequence[runs.Row], first_rows: Sequence[runs.Row]) -> list[Student]:
    """The students that have what the law needs, in order of bits, run and seed.

    Args:
        rows: Of default and short runs.
        first_rows: Of first students.
    """
    engines = {case.name: case.network.engine for case in (*CASES, *SHORT)}
    short = {case.name for case in SHORT}
    firsts = {(row["case"], row["seed"], row["engine"]): row for row in first_rows}
    found = []
    for row in rows:
        if row["engine"] != engines.get(row["case"]) or not conformance_page.has_first(row):
            continue
        first, kept = firsts.get((row["case"], row["seed"], row["engine"])), row["student_loss"]["selected"]
        network, run = row["case"].split("/")[0], row["case"]
        if run in short:
            run = f"{network}/{row['bits']}, short"
        for name, accuracy in {kept: row, **({} if first is None or kept == FIRST else {FIRST: first})}.items():
            error = conformance_page.error_of(row, name)
            loss = round(accuracy["teacher_top1"] - accuracy["top1"], 2)
            ends = name == kept and row["case"] not in short
            found.append(
                Student(network.removesuffix("-folded"), run, row["bits"], row["seed"], name, ends, error, loss)
            )
    return sorted(found, key=lambda student: (student.bits, student.run, student.seed))


def measure(data: Path, folders: Path) -> None:
    """Measure the short runs that have no row and whose network is there."""
    have = {(row["case"], row["engine"]) for row in runs.load(NAME)}
    for case in SHORT:
        if case.obstacle(data) is None and (case.name, case.network.engine) not in have:
            row = conformance.run(case, 0, data, folders)
            runs.keep(NAME, row, conformance.IDENTITY)
            print(f"{case.name}: {row['teacher_top1']} % -> {row['top1']} %", flush=True)


@cache  # the networks of two parts are left out in either order
def law_of(known: tuple[Student, ...]) -> Law:
    """The factor with the least sum of absolute errors of the logarithm of one more than the loss; the spread is 1."""
    wanted = [(each.error, _logarithm(each.loss)) for each in known]

    def badness(law: Law) -> float:
        return sum(abs(loss - _logarithm(law.loss(error).points)) for error, loss in wanted)

    return min((Law(factor, 1.0) for factor in FACTORS), key=badness)


def _logarithm(loss: float) -> float:
    return math.log1p(max(loss, -0.9))  # a student that is better by more than a point is so by chance


def fitted(known: Sequence[Student]) -> Law:
    """The law of students, with the spread that reaches most of those whose network is left out."""
    found = sorted(
        law_of(others).needed(student.error, student.loss) for others, own in parted(known) for student in own
    )
    reached = min(len(found), math.ceil(COVERED * (len(found) + 1)))
    least = found[reached - 1]
    if math.isinf(least):
        raise SystemExit("error: no spread holds that many losses; look at the rows with the most extreme ones")
    return replace(law_of(tuple(known)), spread=math.ceil(100 * least) / 100)


def parted(known: Sequence[Student]) -> Iterator[tuple[tuple[Student, ...], tuple[Student, ...]]]:
    """The students of all other networks, and of one, for each network."""
    for network in dict.fromkeys(student.network for student in known):
        others = tuple(one for one in known if one.network != network)
        yield others, tuple(one for one in known if one.network == network)


def judged(known: Sequence[Student]) -> list[Judged]:
    """Each student with what the other networks expect of it, in the order of the students."""
    found = {}
    for others, own in parted(known):
        law = fitted(others)
        found.update({student: Judged(student, law.loss(student.error)) for student in own})
    return [found[student] for student in known]


def covered(results: Sequence[Judged]) -> float:
    """The percentage of students whose range holds the measured loss."""
    return 100 * statistics.mean(result.within for result in results)


def page(known: Sequence[Student], law: Law) -> str:
    """Write and return the page."""
    results = judged(known)
    groups = [(bits, [each for each in results if each.student.bits == bits]) for bits in _bits(known)]
    ends = [each for each in results if each.student.ends]
    small = [each for each in results if each.expected.points <= 1]
    large = [each for each in results if each.expected.points > 1]
    groups += [("all", results), ("at most 1 point expected", small), ("more expected", large)]
    shares = [[rows, *_share(group)] for rows, group in [*groups, ("ends of default runs", ends)]]
    lines = [
        [
            f"`{each.student.run}`", each.student.seed, each.student.name, f"{each.student.error:.4f}",
            f"{each.student.loss:.2f}", f"{each.expected.points:.2f}",
            f"{each.expected.low:.2f} to {each.expected.high:.2f}", "yes" if each.within else "**no**",
        ]
        for each in results
    ]  # fmt: skip
    return runs.write_page(
        NAME,
        "The expected loss",
        HOW,
        [f"Fitted on all: factor {law.factor:g}, spread {law.spread:g}."],
        runs.table(["rows of", "networks", "rows", "within the range", "median width, points"], shares),
        ["Each student, judged by the other networks:"],
        runs.table(["run", "seed", "student", "e", "loss", "expected", "range", "within"], lines),
        runs.fence(["python benchmarks/expected_loss.py"]),
    )


def _bits(known: Sequence[Student]) -> list[str]:
    return list(dict.fromkeys(student.bits for student in known))


def _share(results: Sequence[Judged]) -> list[Any]:
    """How many networks and rows, how many of them are within their range, and how wide it is."""
    networks = len({each.student.network for each in results})
    return [networks, len(results), f"{covered(results):.0f} %", f"{median_width(results):.1f}"]


def median_width(results: Sequence[Judged]) -> float:
    """The median width of the ranges, in points."""
    return statistics.median(each.width for each in results)


def main(words: Sequence[str] | None = None) -> int:
    """Write the page; 1 if the numbers of the package are not those of the fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, help="folder of the test data; without it nothing is measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/short"), help="folder of the run folders")
    args = parser.parse_args(words)
    if args.data_folder is not None:
        measure(args.data_folder, args.runs)
    known = students()
    law = fitted(known)
    page(known, law)
    if law != FITTED:
        print(f"acq.analysis.expected_loss.FITTED is to be {law}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
