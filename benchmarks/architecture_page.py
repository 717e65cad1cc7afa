"""The page that ``architectures.py`` writes: one line per network, and its forms beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import runs
from architecture_forms import BITS, FORMS, SETTINGS
from networks import ARCHITECTURES
from networks.timm_networks import VERSION

from acq.config import Config, differences
from acq.files.atomic import write_atomically

NAME = "architectures"
ENDS = {"RequestError": "refused", "ExporterError": "no file"}  # by the error that ended a measurement
HOW = f"""\
Each network has **random weights**, so this page shows that networks go through and what is computed on integers. It
shows no accuracy. Batch norms have the statistics of synthetic scenes, gains and shifts are random, and the last
layer's mean is zero. Networks whose names have no ending `-like` are those of timm {VERSION}, most of them with fewer
or narrower stages.

Each network is given in five forms: as a module, and as ONNX files of both exporters of torch. **Folded** is what both
write by default: batch norms are part of convolutions, and the file takes one image. **Kept** files have their batch
norms and take any number of images.

Each form is quantized to W8A8 without training, on 32 images. The figures compare the student, and its exported file on
ONNX Runtime, with the float network on 64 scenes. The images are scenes, or drawings of strokes where a network tells
these apart better, as readers of text do. Many random networks do so by chance. They are then calibrated on another
kind of images than they are measured on, which costs up to 10 dB.

- **Figures:** equal classes, cells or steps in percent; of values the cosine. The dB say how much the difference
  between images exceeds the error. Student and file are the same unless two figures are given.
- **Random networks decide by small margins,** so a percent says less than on trained ones. Compare it with the dB.
- **Integer layers:** convolutions and linear layers on integer kernels of ONNX Runtime, and all layers.
  A convolution whose values are returned is in floating point, because outputs are not rounded.
- **No file:** torch's own exporter cannot write the network.
- **In float:** operators outside layers that the file computes in floating point, in the module.""".splitlines()


def kept_rows(rows: Sequence[runs.Row]) -> list[runs.Row]:
    """The rows of all networks of the list without what only helps to find faults."""
    return [{key: value for key, value in row.items() if key != "trace"} for row in rows]


def write(rows: Sequence[runs.Row]) -> None:
    """Keep rows in docs/benchmarks and write the page."""
    shown = kept_rows(rows)
    write_atomically(runs.RESULTS / f"{NAME}.json", json.dumps({"rows": shown}, indent=1) + "\n")
    write_atomically(runs.RESULTS.parent / f"{NAME}.md", page(shown))


def page(rows: Sequence[runs.Row]) -> str:
    """The page of these rows."""
    by_name: dict[str, dict[str, runs.Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["form"]] = row
    lines = [_line(each.name, by_name[each.name]) for each in ARCHITECTURES if each.name in by_name]
    titles = ["network", "input", "answers", *(form.title for form in FORMS), "integer layers", "in float"]
    done = sum("failure" not in row for row in rows)
    count = f"{len(lines)} networks in {len(FORMS)} forms: {done} of {len(rows)} go through."
    parts = ["# Architectures", count, *"\n".join(HOW).split("\n\n"), "\n".join(runs.table(titles, lines)), _made(rows)]
    return "\n\n".join(parts) + "\n"


def _line(name: str, forms: Mapping[str, runs.Row]) -> list[str]:
    good = [row for row in forms.values() if "failure" not in row]
    first = good[0] if good else {}
    size = "x".join(map(str, next(iter(forms.values()))["size"]))
    layers = dict.fromkeys(f"{row['integer']} of {row['layers']}" for row in good)
    floating = ", ".join(sorted(first.get("floating", {})))
    cells = [_cell(forms.get(form.name)) for form in FORMS]
    return [name, size, first.get("meaning", "-"), *cells, "; ".join(layers) or "-", floating or "none"]


def _cell(row: runs.Row | None) -> str:
    if row is None:
        return "not measured"
    if "failure" in row:
        return ENDS.get(row["failure"].partition(":")[0], "failed")
    figures: list[str] = [_figure(row["kind"], row[part]) for part in ("student", "file")]
    return " / ".join(dict.fromkeys(figures))


def _figure(kind: str, part: Mapping[str, Any]) -> str:
    shown = f"{part['agreement'] / 100:.4f}" if kind == "values" else f"{part['agreement']:.1f} %"
    return f"{shown}, {part['decibels']:.0f} dB"


def _made(rows: Sequence[runs.Row]) -> str:
    changed = differences(Config.create("default", SETTINGS), Config.create("default"))
    settings = " ".join(f"--set {key}={value}" for key, value in changed.items() if key != "device")
    about = [
        f"Seed {runs.each(rows, 'seed')}, torch {runs.each(rows, 'torch')}, one thread of a CPU, commits "
        f"{runs.each(rows, 'commit')}. The settings are `--bits {BITS} {settings}`.",
        "",
        *runs.fence(["python benchmarks/architectures.py", "python benchmarks/architectures.py --page"]),
    ]
    return "\n".join(about)
