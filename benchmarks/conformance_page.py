"""The page docs/results.md that ``conformance.py`` writes: a section per network, and a line per case."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import runs
from cases import Case
from other_tools import other_tools

from acq.analysis.expected_loss import FITTED, relative_error
from acq.core.accuracies import change_margin, margin
from acq.core.outputs import Traits
from acq.files.atomic import write_atomically
from acq.training.distillation import StudentSettings
from acq.training.selection import FIRST

HOW = """\
Each row is the mean of finished runs of `acq quantize`, with one seed per run.
Real images only measure the accuracy, after the last step. No run selects anything on them.

- **Top-1:** percentage of test images, of the float network and of the quantized network, ± standard deviation.
- **Drop:** difference of the two, in percentage points.
- **±:** half the 95 % interval of the drop on so many test images, mean over seeds. Both networks see the same images,
  so only images that one of them alone gets right count. In brackets: that of one accuracy, which is usually wider.
  Earlier runs did not count which images changed.
- **Expected:** the drop that runs expect from synthetic images alone, mean over seeds, with its range. The law was
  fitted on these rows; [its page](benchmarks/expected_loss.md) leaves each network out. Earlier runs have no figures.
- **Agreement:** share of equal decisions of teacher and student on augmented synthetic images.
- **Stopped:** where a run went straight to its last phase: after a few finished images, or amid training.
- **Size:** bytes of quantized weights and scales as a percentage of the float weights.
- **Seconds:** mean time of a run, without evaluation on real images.
- **Peak MB:** the largest memory use of a run: of the GPU on `cuda`, of the process on `cpu`.
- **Placement:** deployable, which is what integer engines run, unless an option says otherwise.
- **Additions:** tensors that enter an addition have 8 bits in the deployable placement.""".splitlines()
WEIGHTS = StudentSettings().fitted(Traits()).losses.model_dump()  # of all cases: each network has features with places
PLACES = {"few": "few images", "student": "training"}  # of a stop, by phase
EARLIER_ENGINE = "Not repeated since results on this network may have changed."
EARLIER = (
    "- [Results before the range search of 27 November 2026](history/2026-11-27-results.md)",
    "- [Results of version 0.1](history/2026-11-26-results.md)",
)
OTHER = {
    "ablation": "Ablation: one part of the method removed at a time",
    "ceiling": "Ceiling: the student on real images",
    "conditioning": "Conditioning: whether images follow their conditions",
    "expected_loss": "The expected loss: the estimate of a run beside the measured loss",
    "first_student": "The first student and the whole run, on real images",
    "export": "Exported files: size, equality with the student, and latency",
    "latency": "Latency of common architectures beside their floating-point files",
    "static_quantization": "ONNX Runtime and NNCF on the same images",
    "speed": "Speed: time per phase and step",
}


def write_results(cases: Sequence[Case]) -> str:
    """Write and return docs/results.md."""
    known = runs.load("conformance")
    rows = [row for case in cases for row in shown(case, known)]
    have = [case for case in cases if any(row["case"] == case.name for row in rows)]
    intro = [
        "`benchmarks/conformance.py` writes this page; do not edit it.",
        "Each row names its commits. Later ones change its figures by rounding alone, unless a note says otherwise:",
        "another processor, or another order of sums, moves a run as another seed does.",
    ]
    lines = ["# Results", "", *intro, "", "## How it was measured", "", *HOW, ""]
    for network in dict.fromkeys(case.network for case in cases):
        own = [case for case in have if case.network == network]
        lines += [f"## {network.title}", "", *network.about, ""]
        lines += [*section(own, rows), ""] if own else ["Not measured yet.", ""]
        lines += other_tools(network)
    missing = [f"- `{case.name}`{seeds}" for case in cases if (seeds := missing_seeds(case, known)) is not None]
    lines += ["## Not measured yet with this engine", "", *missing, ""] if missing else []
    pages = [
        f"- [{text}](benchmarks/{name}.md)" for name, text in OTHER.items() if (runs.RESULTS / f"{name}.md").exists()
    ]
    lines += ["## More", "", *pages, *EARLIER, ""]
    lines += ["## Commands", ""]
    lines += ["Each command makes the first run of a row; the other seeds need another `--seed`."]
    lines += ["Start it in the folder of this repository, with the test data in `data/`.", ""]
    lines += runs.fence(group[0]["command"] for case in have for group in runs_of(case, rows))
    text = "\n".join(lines) + "\n"
    write_atomically(runs.RESULTS.parent / "results.md", text)
    return text


def missing_seeds(case: Case, rows: Sequence[runs.Row]) -> str | None:
    """Which seeds of a case have no row that the present code still gives, in words; None if all have one."""
    have = {row["seed"] for row in present(case, rows)}
    lacking = [seed for seed in case.seeds if seed not in have]
    if not lacking:
        return None
    return "" if not have else f", seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"


def present(case: Case, rows: Sequence[runs.Row]) -> list[runs.Row]:
    """The rows of a case that the present code still gives."""
    return [row for row in rows if row["case"] == case.name and row["engine"] == case.network.engine]


def shown(case: Case, rows: Sequence[runs.Row]) -> list[runs.Row]:
    """The rows of a case: present ones or, where there are none, earlier ones with a remark."""
    earlier = [row for row in rows if row["case"] == case.name]
    return present(case, rows) or [{**row, "remarks": [*row["remarks"], EARLIER_ENGINE]} for row in earlier]


def section(cases: Sequence[Case], rows: Sequence[runs.Row]) -> Iterator[str]:
    """The table of one network and the remarks on its rows."""
    remarks: dict[str, int] = {}
    lines = []
    for case in cases:
        for group in runs_of(case, rows):
            found = [remark for row in group for remark in row["remarks"]]
            known = sorted({remarks.setdefault(remark, len(remarks) + 1) for remark in found})
            numbers = ", ".join(map(str, known)) or None
            lines.append([case.bits, f"`{case.options}`" if case.options else None, *figures(group), numbers])
    titles = ["bits", "options", "top-1 %", "seeds", "drop", "±", "expected", "agreement %", "size"]
    titles += ["stopped", "seconds", "peak MB", "device", "commit", "notes"]
    yield from runs.table(titles, lines)
    if remarks:
        yield ""
        yield from (f"{number}. {remark}" for remark, number in remarks.items())


def figures(rows: Sequence[runs.Row]) -> list[Any]:
    """The cells of a table on runs of one case and device: quality, size, where they stopped, cost and origin."""
    first, stops = rows[0], [(row.get("stopped") or {}).get("phase") for row in rows]
    return [
        f"{first['teacher_top1']:.2f} → {runs.top1(rows)}",
        len(rows),
        runs.drop(rows),
        interval(rows),
        expected(rows),
        runs.mean(rows, "agreement", ".1f"),
        f"{100 * first['quantized_bytes'] / first['float_bytes']:.1f} %",
        ", ".join(dict.fromkeys("end" if stop is None else PLACES[stop] for stop in stops)),
        runs.mean(rows, "seconds", ".0f"),
        runs.most(rows, "peak_memory_mb"),
        f"{first['device']}, {first['threads']} thread{'s' * (first['threads'] > 1)}",
        runs.each(rows, "commit"),
    ]


def interval(rows: Sequence[runs.Row]) -> str:
    """Half the 95 % interval of the drop, in points; of one accuracy, in brackets, where no run counted changes."""
    count = rows[0]["test_images"]
    changes = [(row.get("images_lost"), row.get("images_gained")) for row in rows]
    # the approximation says nothing where nothing changed
    known = [change_margin(lost, gained, count) for lost, gained in changes if lost or gained]
    if len(known) == len(rows):
        return f"{statistics.mean(known):.2f}"
    return f"({margin(statistics.mean(row['top1'] for row in rows), count):.2f})"


def expected(rows: Sequence[runs.Row]) -> str | None:
    """The drop to expect and its range, from the mean error of the students; None where the runs have no figures."""
    errors = [error_of(row, row["student_loss"]["selected"]) for row in rows if has_first(row)]
    if not errors:
        return None
    found = FITTED.loss(statistics.mean(errors))
    return f"{found.points:.2f} ({found.low:.2f} to {found.high:.2f})"


def error_of(row: runs.Row, student: str) -> float:
    """The relative error of one of a run's students."""
    return relative_error(row["student_loss"][student], WEIGHTS)


def has_first(row: runs.Row) -> bool:
    """Whether a run began with a first student, as the law of the expected loss needs it."""
    return row.get("student_loss", {}).get(FIRST) is not None


def runs_of(case: Case, rows: Sequence[runs.Row]) -> list[list[runs.Row]]:
    """The rows of a case, those of one device and one set of settings together."""
    return runs.groups([row for row in rows if row["case"] == case.name], ("settings", "device"))
