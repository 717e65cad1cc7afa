"""Measures every case of ``cases.py`` with ``acq quantize`` and writes docs/results.md.

    python benchmarks/conformance.py --list
    python benchmarks/conformance.py --data-folder data --only resnet20-public

Each finished run becomes a row of docs/benchmarks/conformance.json at once. A run that has a row is skipped, and an
interrupted run continues. A case with missing data is skipped with a message. Several processes may share the work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import runs
import torch
from cases import CASES, Case
from other_tools import other_tools

from acq.analysis.expected_loss import FITTED, relative_error
from acq.core.accuracies import change_margin, margin
from acq.core.outputs import Traits
from acq.files.atomic import write_atomically
from acq.training.distillation import StudentSettings
from acq.training.selection import FIRST

IDENTITY = ("case", "seed", "engine", "settings", "device")
BUSY = 0.5  # load average from which seconds count as upper bounds
UPPER_BOUND = "Other programs used the machine, so the seconds are upper bounds."
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


def measured(case: Case, seed: int) -> bool:
    """Whether the results hold this run, with the present engine and the present settings."""
    settings = runs.settings_of(case.config(seed))
    wanted = {"case": case.name, "seed": seed, "engine": case.network.engine, "settings": settings}
    return runs.has("conformance", wanted)


def run(case: Case, seed: int, data: Path, folders: Path) -> runs.Row:
    """Quantize in a new process and return the row.

    The run folder is below a folder of the commit. An interrupted run continues there if no file was changed since.

    Raises:
        RuntimeError: The run failed.
    """
    folder = folders.resolve() / runs.COMMIT / f"{case.name.replace('/', '-')}-seed{seed}"
    words = case.words(seed, f"{data.resolve()}/")
    words += ["--out", str(folder), "--json", "--quiet"]
    if (folder / "config.yaml").exists():
        words.append("--overwrite" if runs.COMMIT.endswith("-dirty") else "--resume")
    busy = os.getloadavg()[0] > BUSY
    summary = json.loads(acq(words, data if case.network.module else None))
    return {
        "case": case.name,
        "engine": case.network.engine,
        "settings": runs.settings_of(case.config(seed)),
        **{key: summary[key] for key in summary if key not in ("run", "report", "file")},
        "model": case.network.model,  # a file without the folder of this machine
        **runs.origin(),
        "remarks": [f"{machine()}.", *([UPPER_BOUND] if busy else [])],
        "command": case.command(seed),
    }


def acq(words: Sequence[str], modules: Path | None = None, processes: int = 1) -> str:
    """What ``acq`` prints on standard output in a new process, in the folder of this repository.

    Args:
        words: Of the command.
        modules: Folder with more Python modules.
        processes: That share the command, under torchrun if there are several.

    Raises:
        RuntimeError: It failed; the message is the line of ``acq`` on standard error that says why.
    """
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "acq", *words]
    folders = filter(None, (modules and str(modules.resolve()), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        told = [line for line in lines if line.startswith(("error: ", "failed: "))]  # torchrun writes more behind it
        raise RuntimeError((told or lines)[-1])
    return done.stdout


def machine() -> str:
    """The processor, the number of cores, and the GPU if there is one."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else platform.processor() or platform.machine(), f"{os.cpu_count()} cores"]
    return ", ".join([*parts, *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])])


def measure(case: Case, seeds: Sequence[int], args: argparse.Namespace) -> bool:
    """Measure the seeds of a case that have no row yet; False if a run failed."""
    obstacle = case.obstacle(args.data_folder)
    if obstacle is not None:
        print(f"skipped {case.name}: {obstacle}", flush=True)
        return True
    succeeded = True
    for seed in seeds:
        if measured(case, seed) and not args.again:
            print(f"skipped {case.name} seed {seed}: it has a row; give --again to repeat it", flush=True)
            continue
        try:
            row = run(case, seed, args.data_folder, args.runs)
        except RuntimeError as error:
            print(f"failed {case.name} seed {seed}: {error}", flush=True)
            succeeded = False
            continue
        runs.keep("conformance", row, IDENTITY)
        print(f"{case.name} seed {seed}: {row['teacher_top1']} % -> {row['top1']} %, {row['seconds']} s", flush=True)
    return succeeded


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


def main(words: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("data"), help="folder of the test data")
    parser.add_argument("--runs", type=Path, default=Path("runs/conformance"), help="folder of the run folders")
    parser.add_argument(
        "--only", metavar="PATTERN", default="*", help="cases whose names contain it, such as lite0/w4*"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds in place of those of the cases")
    parser.add_argument("--again", action="store_true", help="repeat runs that have a row")
    parser.add_argument("--list", action="store_true", help="list the cases and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    args = parser.parse_args(words)
    chosen = [case for case in cases if fnmatch(case.name, f"*{args.only}*")]
    if not chosen:
        parser.error(f"no case has {args.only!r} in its name; --list shows all names")
    if args.list:
        for case in chosen:
            have = [seed for seed in case.seeds if measured(case, seed)]
            print(f"{case.name}: {len(have)} of {len(case.seeds)} seeds measured")
        return 0
    results = [] if args.page else [measure(case, args.seeds or case.seeds, args) for case in chosen]
    write_results(cases)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
