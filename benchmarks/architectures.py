"""Takes networks of many architectures through every way in which users hold them, and writes docs/architectures.md.

    python benchmarks/architectures.py [NAME ...] [--forms module] [--out runs/architectures]
    python benchmarks/architectures.py --page

NAME is a name of ``networks.ARCHITECTURES`` or a shell pattern. Each network has random weights and is quantized to
W8A8 without training: as a module, and as ONNX files of both exporters of torch. Each is measured in a process of its
own and becomes a file of JSON lines in ``--out``, one line per form. Forms that have a line are skipped, unless it says
that they failed. It needs the extra ``onnx``, and timm 1.0.31 with its requirements.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import runs
import torch
from architecture_forms import FORMS, Form, measured
from architecture_page import write
from networks import ARCHITECTURES, Architecture
from networks.settling import settled

from acq.core.pixels import normalise
from acq.core.values import Preprocessing
from acq.files.atomic import write_atomically
from acq.synthesis.scenes import scenes

OUT = runs.ROOT / "runs" / "architectures"
SECONDS = 900  # of a network in all its forms
_SETTLING, _IMAGES = 64, 64


def preprocessing_of(architecture: Architecture) -> Preprocessing:
    """Pixels in [-1, 1], as for all networks here."""
    halves = (0.5,) * architecture.size[0]
    return Preprocessing(architecture.size, halves, halves)


def measure_forms(architecture: Architecture, forms: Sequence[Form], seed: int, file: Path) -> None:
    """Measure a network in its forms; each row is written at once, in place of the one of that form."""
    torch.set_num_threads(1)
    known = preprocessing_of(architecture)
    rng = torch.Generator().manual_seed(seed)
    settling, images = (normalise(scenes(count, known.input_size, rng), known) for count in (_SETTLING, _IMAGES))
    for form in forms:
        clock = time.perf_counter()
        row: runs.Row = {"name": architecture.name, "form": form.name, "size": list(architecture.size), "seed": seed}
        try:
            torch.manual_seed(seed)
            network = settled(architecture.build(), settling)
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row |= measured(network, architecture, form, known, images, Path(folder))
        except Exception as error:  # the row says so
            row |= {"failure": _said(error), "trace": traceback.format_exc()}
        row |= {"seconds": round(time.perf_counter() - clock, 1), "torch": torch.__version__}
        keep(file, row)


def keep(file: Path, row: runs.Row) -> None:
    """Add a row to those of its network, in place of the one of its form."""
    rows = [other for other in rows_in(file) if other["form"] != row["form"]]
    rows = sorted([*rows, row | runs.origin()], key=lambda each: [form.name for form in FORMS].index(each["form"]))
    write_rows(file, rows)


def write_rows(file: Path, rows: Sequence[runs.Row]) -> None:
    """Write the rows of a network."""
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def rows_in(file: Path) -> list[runs.Row]:
    """The rows of a network so far."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def path_of(architecture: Architecture, out: Path) -> Path:
    """The file of a network's rows."""
    name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in architecture.name)
    return out / f"{name}.jsonl"


def load(out: Path) -> list[runs.Row]:
    """All rows so far, in the order of the list."""
    return [row for architecture in ARCHITECTURES for row in rows_in(path_of(architecture, out))]


def line(row: runs.Row) -> str:
    """A row in short."""
    if "failure" in row:
        return f"{row['name']:<32}{row['form']:<16}{row['seconds']:6}s  FAILED {row['failure']}"
    figures: dict[str, Any] = {key: row[key] for key in ("student", "file")}
    said = ", ".join(f"{name} {value['agreement']:.2f} ({value['decibels']:.1f} dB)" for name, value in figures.items())
    missed = f", missed {row['missed']}" if row["missed"] else ""
    return f"{row['name']:<32}{row['form']:<16}{row['seconds']:6}s  {said}, {row['integer']} of {row['layers']}{missed}"


def in_a_process(architecture: Architecture, forms: Sequence[str], seed: int, out: Path) -> None:
    """Measure a network in a process of its own, which a crash or the limit of time ends alone."""
    words = [architecture.name, "--here", "--out", str(out), "--seed", str(seed), "--forms", *forms]
    clock, file = time.time(), path_of(architecture, out)
    write_rows(file, [row for row in rows_in(file) if row["form"] not in forms])
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        end = f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        end = f"no end after {SECONDS} s"
    for form in forms:
        if form not in {row["form"] for row in rows_in(file)}:
            row = {"name": architecture.name, "form": form, "size": list(architecture.size), "seed": seed}
            keep(file, row | {"failure": end, "seconds": round(time.time() - clock, 1)})


def main(words: Sequence[str] | None = None) -> None:
    """Measure the networks that are asked for, or write the page."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("names", nargs="*", metavar="NAME", default=["*"])
    known.add_argument("--forms", nargs="+", choices=[form.name for form in FORMS], default=[f.name for f in FORMS])
    known.add_argument("--out", type=Path, default=OUT)
    known.add_argument("--seed", type=int, default=0)
    known.add_argument("--again", action="store_true", help="repeat rows that are there")
    known.add_argument("--page", action="store_true", help="write the page from all rows")
    known.add_argument("--here", action="store_true", help="measure in this process")
    args = known.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.page:
        write(load(args.out))
        return
    for each in ARCHITECTURES:
        if not any(fnmatch(each.name, pattern) for pattern in args.names or ["*"]):
            continue
        file = path_of(each, args.out)
        if args.here:
            measure_forms(each, [form for form in FORMS if form.name in args.forms], args.seed, file)
            continue
        there = {row["form"] for row in rows_in(file) if "failure" not in row and not args.again}
        forms = [form for form in args.forms if form not in there]
        if forms:
            in_a_process(each, forms, args.seed, args.out)
            for row in rows_in(file):
                print(line(row), *[row.get("trace", "")] if row["form"] in forms else [], flush=True)


if __name__ == "__main__":
    main()
