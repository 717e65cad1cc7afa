"""The figures of a report, as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_INK = "#010203"  # stands for the page's own text colour, which the drawing library cannot know
FIRST, SECOND = "#2f7fd1", "#c4570c"  # at least 3 to 1 against white and against the dark page
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "acq",
    "font.family": "sans-serif",
    "font.size": 10,
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8888887f",
    "grid.linewidth": 0.5,
}


def scatter(centres: Sequence[Mapping[str, Any]]) -> str:
    """Requested against realised attention centres, across and down."""
    with _figure(8, 3.6) as figure:
        for axis, name in enumerate(("across", "down")):
            axes = figure.add_subplot(1, 2, axis + 1)
            asked, came = ([centre[key][axis] for centre in centres] for key in ("requested", "realised"))
            axes.plot([-1, 1], [-1, 1], color=_INK, linewidth=0.8, linestyle="--")
            axes.scatter(asked, came, s=6, color=FIRST, alpha=0.6, linewidths=0)
            axes.set(xlabel=f"requested, {name}", ylabel="realised", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        return _svg(figure, "scatter")


def spreads(spread: Mapping[str, float]) -> str:
    """The spread of realised centres in each class."""
    with _figure(8, 2.6) as figure:
        axes = figure.add_subplot()
        axes.bar(range(len(spread)), list(spread.values()), color=FIRST)
        _names(axes, list(spread))
        axes.set(ylabel="spread of centres", xlabel="class")
        return _svg(figure, "spreads")


def statistics(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far synthetic images are from the stored statistics, layer by layer."""
    with _figure(8, 2.8) as figure:
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.bar([x - 0.2 for x in places], [row["mean"] for row in rows], 0.4, color=FIRST, label="mean")
        axes.bar([x + 0.2 for x in places], [row["deviation"] for row in rows], 0.4, color=SECOND, label="deviation")
        axes.set(xlabel="batch normalization, in order of execution", ylabel="distance, in deviations")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return _svg(figure, "statistics")


def curves(phase: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Each loss of a phase over its steps, on a logarithmic axis: those that were ever above zero."""
    names = list(dict.fromkeys(name for record in records for name, value in record["values"].items() if value > 0))
    with _figure(8, 2.8) as figure:
        axes = figure.add_subplot()
        for index, name in enumerate(names):
            points = [(r["step"], r["values"][name]) for r in records if r["values"].get(name, 0) > 0]
            style = ("-", "--", ":", "-.")[index // 2 % 4]
            axes.plot(*zip(*points, strict=True), style, color=(FIRST, SECOND)[index % 2], label=name, linewidth=1.4)
        axes.set(xlabel="step", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return _svg(figure, phase)


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))


def _names(axes: Axes, names: Sequence[str]) -> None:
    every = max(1, len(names) // 20)
    axes.set_xticks(range(0, len(names), every), names[::every])


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str) -> str:
    """The drawing alone; its parts are called after ``name``, so that several drawings fit on a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = text.replace("xlink:href", "href")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
