"""The figures at the top of the page: accuracy, agreement, size, latency and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acq.core.accuracies import accuracy_of, margin
from acq.core.outputs import counted_in, is_cosine
from acq.core.units import in_kilobytes, in_minutes
from acq.runs.summary import accuracies, margin_of_change


@dataclass(frozen=True)
class Figure:
    """One figure: its name, its value with the unit, and what it is measured on."""

    name: str
    value: str
    detail: str


def headline(summary: Mapping[str, Any], latencies: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The headline of a run.

    Args:
        summary: The figures of the run.
        latencies: Measurements in milliseconds per batch.
    """
    return [
        _accuracy(summary),
        *_top5(summary),
        Figure(
            "Agreement",
            *_agreement(summary["output"]["kind"], summary["agreement"]),
        ),
        Figure(
            "Size",
            f"{100 * summary['quantized_bytes'] / summary['float_bytes']:.1f} %",
            f"of float: {in_kilobytes(summary['float_bytes'])} → {in_kilobytes(summary['quantized_bytes'])} "
            "of weights and scales",
        ),
        *_expected(summary),
        *_latencies(latencies),
        Figure("Time", in_minutes(summary["seconds"]), f"on {summary['device']}, {_threads(summary['threads'])}"),
    ]


def _agreement(kind: str, percent: float) -> tuple[str, str]:
    """The figure, and what it is a share of."""
    images = "augmented synthetic images"
    if is_cosine(kind):
        return f"{percent / 100:.4f}", f"mean cosine of what student and teacher return for {images}"
    same = "class" if kind in ("class", "map", "sequence") else "answer"
    return f"{percent:.2f} %", f"of {counted_in(kind, images)} get the same {same} from student and teacher"


def _accuracy(summary: Mapping[str, Any]) -> Figure:
    is_class, measured = summary["output"]["kind"] == "class", accuracies(summary)
    known = accuracy_of(summary["output"]["kind"])
    if known is None:
        return Figure("Accuracy", "not measured", "values are compared with no labels")
    if measured is None:
        return Figure(known.title, "not measured", "give labelled real images with --data to measure it")
    (before, after), count = measured, summary["test_images"]
    detail = f"float → {summary['bits']}, {_change(after - before)} on {count:,} test images"
    of_change = margin_of_change(summary)
    of_one = margin(after, count) if is_class else 0.0  # labels of one image are not drawn by themselves
    # the approximations say nothing about 0 and 100 %, and about no change
    intervals = [
        f"±{points:.1f} points of {what}"
        for points, what in ((of_change, "the change"), (of_one, "one accuracy"))
        if points
    ]
    detail += f"; 95 % interval{'s' * (len(intervals) > 1)}: {', '.join(intervals)}" if intervals else ""
    return Figure(known.title, f"{before:.2f} → {after:.2f} %", detail)


def _top5(summary: Mapping[str, Any]) -> Iterator[Figure]:
    """Top-5 of both networks, where it was measured."""
    if (after := summary.get("top5")) is not None:
        detail = "images whose class is among the five most likely"
        yield Figure("Top-5 accuracy", f"{summary['teacher_top5']:.2f} → {after:.2f} %", detail)


def _expected(summary: Mapping[str, Any]) -> Iterator[Figure]:
    """The loss to expect on real images, where there is an estimate."""
    loss = summary.get("expected_loss")  # a finished run of an earlier version has none
    if loss is not None:
        detail = (
            f"{loss['low']:.1f} to {loss['high']:.1f} points in 9 of 10 runs on networks that the estimate never saw"
        )
        yield Figure("Expected loss of top-1", f"{loss['points']:.1f} points", detail)


def _change(points: float) -> str:
    if not round(points, 2):
        return "the same"
    return f"{abs(points):.2f} points {'lower' if points < 0 else 'higher'}"


def _latencies(latencies: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """The latency of the smallest batch that was measured. The value is that of the first number of threads."""
    batch = min((row["batch"] for row in latencies), default=1)
    rows = [row for row in latencies if row["batch"] == batch]
    if rows:
        unit = "image" if batch == 1 else f"{batch} images"
        times = [
            f"{row['float_ms']:.3g} → {row['integer_ms']:.3g} ms per {unit} on {_threads(row['threads'])}"
            for row in rows
        ]
        yield Figure("Latency", f"{100 * rows[0]['latency_ratio']:.0f} %", f"of float on this CPU: {', '.join(times)}")


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
