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

FIRST, SECOND = "#2f7fd1", "#c4570c"  # contrast of at least 3 to 1 on the light and on the dark page
_INK = "#010203"  # stands for the page's text colour, which matplotlib cannot know
_PLACES = (-1, -0.5, 0, 0.5, 1)  # on an axis of the image
_WIDTH = 5.5  # inches: so narrow that text can still be read on a phone
_TICKS = 20  # labels on an axis of names
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
    """Realised against requested attention centres, one plot per axis of the image.

    Args:
        centres: ``requested`` and ``realised`` centres (x, y) in [-1, 1].
    """
    with _figure(2.9) as figure:
        for axis, name in enumerate(("x, left to right", "y, top to bottom")):
            axes = figure.add_subplot(1, 2, axis + 1)
            requested, realised = ([centre[key][axis] for centre in centres] for key in ("requested", "realised"))
            axes.plot([-1, 1], [-1, 1], color=_INK, linewidth=0.8, linestyle="--")
            axes.scatter(requested, realised, s=6, color=FIRST, alpha=0.6, linewidths=0)
            axes.set(xlabel=f"requested {name}", ylabel="realised", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            axes.set(xticks=_PLACES, yticks=_PLACES)
        return _svg(figure, "scatter")


def spreads(spread: Mapping[str, float], answer: str = "class") -> str:
    """Bars of the standard deviation of realised centres within each requested answer.

    Args:
        spread: In halves of the image's side, by answer.
        answer: What an answer is called.
    """
    with _figure(2.2) as figure:
        axes = figure.add_subplot()
        axes.bar(range(len(spread)), list(spread.values()), color=FIRST)
        every = max(1, len(spread) // _TICKS)
        axes.set_xticks(range(0, len(spread), every), [_plain(name) for name in spread][::every])
        axes.set(ylabel="spread", xlabel=answer)
        return _svg(figure, "spreads")


def statistics(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the distance from stored batch-norm statistics, layer by layer.

    Args:
        rows: Distances of ``mean`` and standard ``deviation``, in stored standard deviations.
    """
    with _figure(2.5) as figure:
        axes = figure.add_subplot()
        places = range(1, len(rows) + 1)
        axes.bar([x - 0.2 for x in places], [row["mean"] for row in rows], 0.4, color=FIRST, label="mean")
        axes.bar(
            [x + 0.2 for x in places], [row["deviation"] for row in rows], 0.4, color=SECOND, label="standard deviation"
        )
        axes.set(xlabel="batch norm, in order of execution", ylabel="distance, stored std", xlim=(0.4, len(rows) + 0.6))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return _svg(figure, "statistics")


def curves(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """Lines of the losses of one phase over its steps, on a logarithmic axis. Losses that stay at zero are left out.

    Args:
        records: The ``step`` and the losses (``values``) of each record.
        name: Of the drawing; it must not come from the run.
    """
    losses = list(dict.fromkeys(loss for record in records for loss, value in record["values"].items() if value > 0))
    with _figure(2.5) as figure:
        axes = figure.add_subplot()
        for index, loss in enumerate(losses):
            points = [(r["step"], r["values"][loss]) for r in records if r["values"].get(loss, 0) > 0]
            style = ("-", "--", ":", "-.")[index // 2 % 4]
            color, label = (FIRST, SECOND)[index % 2], _plain(loss)
            axes.plot(*zip(*points, strict=True), style, color=color, label=label, linewidth=1.4)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if losses:
            _legend(axes)
        return _svg(figure, name)


def _plain(name: str) -> str:
    """A name of the run that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """A figure in the style of the page; its height is in inches."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def _svg(figure: Figure, name: str) -> str:
    """The drawing without its document. Identifiers begin with ``name``, so that several drawings fit on a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = text.replace("xlink:href", "href")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
