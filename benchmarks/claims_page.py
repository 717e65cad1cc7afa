"""Writes the page of ``claims.py`` with its two plots."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import runs
from attention import FIGURES
from case_networks import Network
from matplotlib.figure import Figure
from runs import Row
from scipy.stats import t, ttest_rel

from acq.files.atomic import write_atomically

NAME = "claims"
ACQ, GDFQ, REAL = "ACQ", "GDFQ", "real images"
LEVEL = 0.95  # of intervals
STYLE: Any = {"svg.hashsalt": "acq", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.alpha": 0.4}
ABOUT = """\
ACQ's abstract makes two observations and proposes three parts that answer them. This page measures each of them in the
setting of the papers: presets `acq` and `gdfq`, and `acq` without one part. Images are as the generator made them.
There are no scenes, no refinement, no augmentation, no equalization and no rounding layer by layer. Outputs of ReLU
alone are quantized, and all layers have the same bits. The presets were fixed before, on other seeds.
Real images only measure.""".splitlines()
ACCURACY = """\
- **Top-1:** percent of test images, mean over seeds ± standard deviation.
- **Behind ACQ:** points by which ACQ is ahead, mean over seeds with its 95 % interval. Runs of one seed make pairs.
- **p:** of the paired t-test, two-sided.""".splitlines()
OBSERVED = """\
1,024 new images per generator, maps of the requested class; of the real images, maps of their own class.

- **Spread of centres, similarity within a class:** standard deviation of attention centres, in half image sizes, and
  mean cosine of the maps of two images. The abstract's first observation: images of one class share one attention.
- **Similarity of both modes:** mean cosine of an image's maps with running and with batch statistics. The second
  observation: they differ, so that statistics are matched inaccurately.
- **Mismatch of statistics:** distance of batch-norm statistics from the stored ones in each mode, in batches of 64
  (the loss `statistics`).""".splitlines()
PROTOCOL = """\
## Differences from GDFQ's published protocol

- **Length:** 500 steps of the generator and 600 of the student with 64 images each. GDFQ trains both for 80,000 steps
  with 200 (CIFAR) or 16 images (ImageNet).
- **Order:** the generator first, then the student on 4,096 images, of which 128 are renewed every 20 steps. GDFQ trains
  both in turns.
- **Generator:** this project's, which places a window on a canvas. GDFQ's multiplies noise and label embedding.
- **Statistics loss:** relative to each channel's deviation, with weight 10. GDFQ's is the plain squared difference,
  with weight 0.1 (`statistics_plain`).
- **Student's losses:** relative squared error of logits and of the last features, Adam. GDFQ takes cross entropy and KL
  divergence, SGD.
- **Ranges:** searched on 1,024 generated images, then trained. GDFQ averages minima and maxima over four epochs.
- **Reported:** the last step, or the untrained student if it is nearer to the teacher on synthetic images. GDFQ's code
  reports the best epoch on the test set.""".splitlines()


def write(networks: Sequence[Network]) -> str:
    """Write the page and its plots, and return the page."""
    rows = runs.load(NAME)
    shown = [network for network in networks if any(row["network"] == network.name for row in rows)]
    _plot("accuracy", _accuracy_plot(rows, shown))
    _plot("attention", _attention_plot(rows, shown))
    parts: list[Sequence[str]] = [ABOUT, ["## Accuracy"], ["![Points by which ACQ is ahead](claims-accuracy.svg)"]]
    parts += [accuracy(rows, network) for network in shown]
    parts += [ACCURACY, ["## Attention"], ["![Attention of generated and of real images](claims-attention.svg)"]]
    parts += [attention(rows, network) for network in shown]
    parts += [OBSERVED, PROTOCOL, runs.fence(["python benchmarks/claims.py --data-folder data"])]
    return runs.write_page(NAME, "The claims of ACQ's abstract", *parts)


def accuracy(rows: Sequence[Row], network: Network) -> list[str]:
    """The table of a network: accuracy of each variant, and how far it is behind ACQ."""
    lines = []
    for bits in dict.fromkeys(row["bits"] for row in _of(rows, network) if row["bits"]):
        for variant, found in _variants(_of(rows, network, bits)).items():
            gap, p = behind(_of(rows, network, bits), variant)
            cells = [runs.top1(found), runs.drop(found), gap, p, runs.each(found, "seed"), runs.each(found, "commit")]
            lines.append([network.title, bits, variant, *cells])
    return runs.table(["network", "bits", "variant", "top-1 %", "drop", "behind ACQ", "p", "seeds", "commit"], lines)


def behind(rows: Sequence[Row], variant: str) -> tuple[str, str]:
    """By how much ACQ is ahead of a variant on the seeds of both, and the p-value; dashes where that says nothing."""
    gaps = gaps_of(rows, variant)
    if variant == ACQ or len(gaps) < 2:
        return "-", "-"
    mean, half = statistics.mean(gaps), half_interval(gaps)
    ours, theirs = ([row["top1"] for row in _paired(rows, name, variant)] for name in (ACQ, variant))
    return f"{mean:+.2f} ± {half:.2f}", f"{ttest_rel(ours, theirs).pvalue:.2g}"


def gaps_of(rows: Sequence[Row], variant: str) -> list[float]:
    """Top-1 of ACQ minus that of a variant, for each seed that both have, in points."""
    pairs = zip(_paired(rows, ACQ, variant), _paired(rows, variant, ACQ), strict=True)
    return [ours["top1"] - theirs["top1"] for ours, theirs in pairs]


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean (Student's t)."""
    freedom = len(values) - 1
    return float(t.ppf((1 + LEVEL) / 2, freedom)) * statistics.stdev(values) / math.sqrt(len(values))


def attention(rows: Sequence[Row], network: Network) -> list[str]:
    """The table of a network: the figures of attention of each variant's images, mean over seeds."""
    lines = []
    for variant, found in _variants(_of(rows, network)).items():
        followed = runs.mean(found, "generator.label_agreement", ".0%")
        lines.append([network.title, variant, *(runs.mean(found, f"observed.{key}") for key in FIGURES), followed])
    return runs.table(["network", "images of", *FIGURES.values(), "labels followed"], lines)


def _of(rows: Sequence[Row], network: Network, bits: str | None = None) -> list[Row]:
    """The rows of a network with its present engine."""
    mine = [row for row in rows if row["network"] == network.name and row["engine"] == network.engine]
    return [row for row in mine if bits is None or row["bits"] == bits]


def _variants(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by variant, sorted by seed."""
    return {group[0]["variant"]: group for group in runs.groups(rows, ("variant",))}


def _paired(rows: Sequence[Row], variant: str, other: str) -> list[Row]:
    """The rows of a variant at seeds that the other one has too, sorted by seed."""
    seeds = {row["seed"] for row in rows if row["variant"] == other}
    return sorted((r for r in rows if r["variant"] == variant and r["seed"] in seeds), key=lambda row: row["seed"])


def _accuracy_plot(rows: Sequence[Row], networks: Sequence[Network]) -> Figure:
    """Per network and bits: how far each variant is behind ACQ, a dot per seed and the mean with its interval."""
    lines = list(_gap_lines(rows, networks))
    figure = Figure(figsize=(7, 0.6 + 0.32 * max(1, len(lines))), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, gaps) in enumerate(lines):
        axes.plot(gaps, [place] * len(gaps), "o", color="#2f7fd1", alpha=0.4, markersize=4)
        half = half_interval(gaps) if len(gaps) > 1 else 0.0
        axes.errorbar(statistics.mean(gaps), place, xerr=half, fmt="D", color="#c4570c", markersize=5, capsize=3)
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set(xlabel="points of top-1 by which ACQ is ahead")
    axes.invert_yaxis()
    return figure


def _gap_lines(rows: Sequence[Row], networks: Sequence[Network]) -> Iterator[tuple[str, list[float]]]:
    for network in networks:
        for bits in dict.fromkeys(row["bits"] for row in _of(rows, network) if row["bits"]):
            found = _of(rows, network, bits)
            for variant in _variants(found):
                if variant != ACQ and (gaps := gaps_of(found, variant)):
                    yield f"{network.title}, {bits}: {variant}", gaps


def _attention_plot(rows: Sequence[Row], networks: Sequence[Network]) -> Figure:
    """Two panels: how alike the maps of a class are, and how alike the maps of both modes are."""
    figure = Figure(figsize=(7, 1.2 + 0.9 * max(1, len(networks))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [f"{network.title}: {variant}" for network in networks for variant in _variants(_of(rows, network))]
    for axes, key in zip(panels, ("class_similarity", "mode_similarity"), strict=True):
        values = [
            statistics.mean(row["observed"][key] for row in found)
            for network in networks
            for found in _variants(_of(rows, network)).values()
        ]
        axes.barh(range(len(values)), values, color="#2f7fd1")
        axes.set(xlabel=FIGURES[key])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def _plot(name: str, figure: Figure) -> None:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(runs.RESULTS / f"{NAME}-{name}.svg", buffer.getvalue())
