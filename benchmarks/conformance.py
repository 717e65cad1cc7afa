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
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import runs
import torch
from cases import CASES, Case
from conformance_page import write_results

IDENTITY = ("case", "seed", "engine", "settings", "device")
BUSY = 0.5  # load average from which seconds count as upper bounds
UPPER_BOUND = "Other programs used the machine, so the seconds are upper bounds."


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
