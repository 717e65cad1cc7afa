"""The figures at the top of the page: accuracy, agreement, size, latency and time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acq.core.units import in_kilobytes, in_minutes
from acq.runs.summary import accuracies

_CONFIDENCE = 1.96  # standard deviations on either side that hold 95 % of a normal distribution


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
        Figure(
            "Agreement",
            f"{summary['agreement']:.2f} %",
            "of augmented synthetic images get the same class from student and teacher"
            if summary["output"]["kind"] == "class"
            else "of labels of augmented synthetic images get the same answer from student and teacher",
        ),
        Figure(
            "Size",
            f"{100 * summary['quantized_bytes'] / summary['float_bytes']:.1f} %",
            f"of float: {in_kilobytes(summary['float_bytes'])} → {in_kilobytes(summary['quantized_bytes'])} "
            "of weights and scales",
        ),
        *_latencies(latencies),
        Figure("Time", in_minutes(summary["seconds"]), f"on {summary['device']}, {_threads(summary['threads'])}"),
    ]


def margin(percent: float, count: int) -> float:
    """Half the 95 % confidence interval of an accuracy, in percentage points.

    This is the normal approximation of the binomial distribution: ``1.96 sqrt(p (1 - p) / n)``.

    Args:
        percent: The accuracy p, from 0 to 100.
        count: The number n of test images.
    """
    share = percent / 100
    return 100 * _CONFIDENCE * math.sqrt(share * (1 - share) / count)


def _accuracy(summary: Mapping[str, Any]) -> Figure:
    is_class, measured = summary["output"]["kind"] == "class", accuracies(summary)
    name = "Top-1 accuracy" if is_class else "Accuracy of labels"
    if measured is None:
        return Figure(name, "not measured", "give labelled real images with --data to measure it")
    (before, after), count = measured, summary["test_images"]
    detail = f"float → {summary['bits']}, {_change(after - before)} on {count:,} test images"
    interval = margin(after, count) if is_class else 0.0  # labels of one image are not drawn by themselves
    if interval:  # the approximation says nothing about 0 and 100 %
        detail += f"; 95 % interval of one accuracy: ±{interval:.1f} points"
    return Figure(name, f"{before:.2f} → {after:.2f} %", detail)


def _change(points: float) -> str:
    if not round(points, 2):
        return "the same"
    return f"{abs(points):.2f} points {'lower' if points < 0 else 'higher'}"


def _latencies(latencies: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """The latency of single images, if it was measured. The value is that of the first number of threads."""
    rows = [row for row in latencies if row["batch"] == 1]
    if rows:
        times = [
            f"{row['float_ms']:.3g} → {row['integer_ms']:.3g} ms per image on {_threads(row['threads'])}"
            for row in rows
        ]
        yield Figure("Latency", f"{100 * rows[0]['latency_ratio']:.0f} %", f"of float on this CPU: {', '.join(times)}")


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
