"""The page of a finished run, from what its folder holds."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from acq.errors import RequestError, first_line
from acq.files.images import use_image
from acq.files.limits import from_json, from_yaml, read_text
from acq.report import figures
from acq.runs.folder import CONFIG, INSIGHT, LATENCY, METRICS, SAMPLES, SUMMARY

_SHOWN, _PIXELS = 40, 112  # samples, and the longest side of one
_RIPE = 0.9  # of the images are of the class that was asked for, else the generator's own say little


def render(run: Path, plan: Sequence[Mapping[str, Any]], command: str) -> str:
    """The page; ``plan`` are its student's sites as dictionaries, ``command`` is what makes the run again.

    Everything is in the page itself, and whatever comes from the run is escaped.

    Raises:
        RequestError: the run is not finished, was made by a version without insight, or a file is damaged.
    """
    summary, insight = read_json(run / SUMMARY), read_json(run / INSIGHT)
    latencies = _latencies(run / LATENCY) if (run / LATENCY).exists() else []
    try:
        records = [from_json(line) for line in read_text(run / METRICS).splitlines()]
        settings = from_yaml(read_text(run / CONFIG))
        layers = sorted(insight["layers"], key=lambda row: float(row["logits_db"]))
        spread = _spread(insight["centres"])
        return (
            environment()
            .get_template("run.html")
            .render(
                run=run.name,
                summary=summary,
                insight=insight,
                headline=_headline(summary, latencies),
                caveats=_caveats(summary),
                samples=_samples(run, insight["attention"]),
                scatter=figures.scatter(insight["centres"]),
                spreads=figures.spreads(spread),
                spread=spread,
                statistics=figures.statistics(insight["statistics"]),
                worst_statistics=max(insight["statistics"], key=lambda row: float(row["mean"] + row["deviation"])),
                curves={
                    phase: figures.curves(phase, list(rows))
                    for phase, rows in groupby(records, lambda row: row["phase"])
                },
                layers=layers,
                relief=_relief(layers, plan),
                plan=plan,
                settings=yaml.safe_dump(settings["config"], sort_keys=False),
                command=command,
                versions={"acq": version("acq"), "torch": summary["torch"]},
            )
        )
    except RequestError:
        raise
    except Exception as error:  # whatever a file's contents cause is the file's fault
        what = f"{type(error).__name__}: {first_line(error)}"
        raise RequestError(f"the run in {run} is damaged ({what}); quantize again") from error


def environment() -> Environment:
    """Templates of this folder, which escape what they are given and know no undefined names."""
    return Environment(
        loader=PackageLoader("acq.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object of a finished run's folder; RequestError where it is missing or damaged."""
    try:
        return dict(from_json(read_text(path)))
    except FileNotFoundError:
        raise RequestError(f"there is no {path}; a report needs a finished run of this version") from None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{path} is damaged; quantize again") from error


def _latencies(path: Path) -> list[dict[str, Any]]:
    try:
        rows = from_json(read_text(path))["latencies"]
        return [{"batch": int(row["batch"]), "threads": int(row["threads"]), "ratio": float(row["ratio"]),
                 "integer_ms": float(row["integer_ms"])} for row in rows]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is damaged; run acq benchmark again, or delete it") from error


def _headline(summary: Mapping[str, Any], latencies: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Figure, unit and what it is."""
    shown: list[tuple[str, str, str]] = []
    if summary["top1"] is not None:
        drop = summary["teacher_top1"] - summary["top1"]
        shown.append((f"{summary['top1']:.2f}", "%", f"top-1 on {summary['images']} real images, {drop:.2f} lost"))
    shown.append((f"{summary['agreement']:.2f}", "%", "agreement with the network on fresh synthetic images"))
    ratio = summary["quantized_bytes"] / summary["float_bytes"]
    shown.append((f"{ratio:.3f}", "", f"of the size, {summary['quantized_bytes'] / 1e3:.0f} kB of weights and scales"))
    for row in latencies:
        if row["batch"] == 1:
            took = f"{row['integer_ms']:.3g} ms an image on {_threads(row['threads'])} of this CPU"
            shown.append((f"{row['ratio']:.2f}", "", f"of floating point's latency, {took}"))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    shown.append((f"{minutes}:{seconds:02d}", "min", f"on {summary['device']}, {_threads(summary['threads'])}"))
    return shown


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _caveats(summary: Mapping[str, Any]) -> list[str]:
    """What one must know before believing a figure."""
    found = []
    if summary["top1"] is None:
        found.append(
            "No real images were given, so accuracy is not known: agreement on synthetic images says how well the "
            "student follows the network there, and is mostly higher than on real ones."
        )
    if summary["attention"]["label_agreement"] < _RIPE:
        share = 100 * summary["attention"]["label_agreement"]
        found.append(
            f"The network sees the class that was asked for in {share:.0f} % of the generator's own images: it is not "
            "ripe, so agreement on them says little. Finished images, which the student learned from, are better."
        )
    losses = summary.get("student_loss", {})  # which runs of earlier versions do not have
    if losses.get("trained") is not None and losses["kept"] == "calibrated":
        found.append(
            f"Training took the student further from the network (on views of its own images loss {losses['trained']} "
            f"after {losses['calibrated']}), so the student is the calibrated one and its steps were in vain."
        )
    if summary["placement"] == "relu-only":
        found.append("The relu-only placement is the literature's, for comparison: parts of it stay in floating point.")
    elif summary["floating"]:
        found.append(f"{summary['floating']} operators stay in floating point; the plan below says why.")
    if summary["addends"] not in (None, "same"):
        found.append(
            f"Values have {summary['addends']} bits where they are added to others; layers read the activations' bits."
        )
    found.append(
        "Layers in the table of costs are quantized alone, rounded to the nearest integers: what each would cost by "
        "itself, not what is left of it after rounding as a whole and training."
    )
    return found


def _samples(run: Path, attention: Sequence[Any]) -> list[dict[str, Any]]:
    """Images by class, each with its map and both centres in units of the image's sides."""
    rows = from_json(read_text(run / SAMPLES / "samples.json"))
    shown = []
    for index, (row, heat) in enumerate(zip(rows, attention, strict=True)):
        shown.append(
            {
                **row,
                "image": _png(use_image(run / SAMPLES / f"{index:03d}.png", _small)),
                "heat": _png(_heat(heat)),
                "asked": [(value + 1) / 2 for value in row["centre"]],
                "came": [(value + 1) / 2 for value in row["realised"]],
            }
        )
    return sorted(shown[:_SHOWN], key=lambda sample: int(sample["label"]))


def _small(image: Image.Image) -> Image.Image:
    smaller = image.copy()
    smaller.thumbnail((_PIXELS, _PIXELS))
    return smaller


def _heat(heat: Sequence[Sequence[float]]) -> Image.Image:
    """The attention map as a red veil, as strong as the attention."""
    size = len(heat[0]), len(heat)
    veil = Image.new("RGBA", size)
    veil.putdata([(255, 60, 0, round(170 * min(max(value, 0.0), 1.0))) for line in heat for value in line])
    return veil.resize((size[0] * 4, size[1] * 4), Image.Resampling.BILINEAR)


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _spread(centres: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The standard deviation of realised centres of each class that has two, mean over both axes."""
    by_class: dict[int, list[Any]] = {}
    for centre in centres:
        by_class.setdefault(centre["label"], []).append(centre["realised"])
    return {
        str(label): statistics.mean(statistics.stdev(axis) for axis in zip(*places, strict=True))
        for label, places in sorted(by_class.items())
        if len(places) > 1
    }


def _relief(layers: Sequence[Mapping[str, Any]], plan: Sequence[Mapping[str, Any]]) -> str | None:
    """The setting that would give the layer that costs most twice as fine weights; None where nothing is left."""
    widths = {site["node"]: site["weight_bits"] for site in plan}
    for row in layers:
        bits = widths.get(row["layer"])
        if bits is not None and bits < 7:
            return f"--set layers.{row['layer']}={bits + 1}"
    return None
