from __future__ import annotations

from typing import Any

import pytest

from acq.report.headline import Figure, headline

SUMMARY = {
    "output": {"kind": "class", "size": 5},
    "bits": "w4a4", "teacher_top1": 91.5, "top1": 90.0, "test_images": 1000, "agreement": 98.5, "device": "cpu",
    "threads": 1, "float_bytes": 1_000_000, "quantized_bytes": 150_000, "seconds": 65.4,
    "expected_loss": {"points": 0.42, "low": -0.28, "high": 1.66},
}  # fmt: skip
LATENCIES = [
    {"threads": threads, "batch": batch, "float_ms": 2.0, "integer_ms": 1.234, "latency_ratio": 0.617}
    for threads in (1, 2)
    for batch in (1, 32)
]


def named(name: str, latencies: Any = (), **values: Any) -> list[Figure]:
    return [figure for figure in headline(SUMMARY | values, latencies) if figure.name == name]


def test_accuracy_is_shown_before_and_after_with_its_interval() -> None:
    """With the number of images that it is measured on."""
    (figure,) = named("Top-1 accuracy")
    assert figure.value == "91.50 → 90.00 %"
    assert figure.detail == (
        "float → w4a4, 1.50 points lower on 1,000 test images; 95 % interval: ±1.9 points of one accuracy"
    )


def test_the_change_of_the_accuracy_has_its_own_interval() -> None:
    """It is narrower, as both networks see the same images. Earlier runs did not count what changed."""
    (figure,) = named("Top-1 accuracy", images_lost=25, images_gained=10)
    assert figure.detail.endswith("95 % intervals: ±1.2 points of the change, ±1.9 points of one accuracy")


@pytest.mark.parametrize(
    ("top1", "words"), [(91.7, "0.20 points higher on"), (91.5, "the same on"), (100.0, "1,000 test images")]
)
def test_the_change_of_the_accuracy_has_a_direction(top1: float, words: str) -> None:
    """At 100 % there is no interval, because the approximation fails there."""
    (figure,) = named("Top-1 accuracy", top1=top1)
    assert words in figure.detail
    assert ("interval" in figure.detail) == (top1 < 100)


def test_an_unknown_accuracy_says_so() -> None:
    """And how to measure it."""
    (figure,) = named("Top-1 accuracy", top1=None, teacher_top1=None, test_images=None)
    assert figure.value == "not measured"
    assert "--data" in figure.detail


def test_top5_is_shown_where_it_was_measured() -> None:
    """Networks with few classes have none."""
    (figure,) = named("Top-5 accuracy", teacher_top5=98.25, top5=97.5)
    assert figure.value == "98.25 → 97.50 %"
    assert not named("Top-5 accuracy", teacher_top5=None, top5=None)
    assert not named("Top-5 accuracy")


def test_the_expected_loss_has_its_range_where_it_is_known() -> None:
    """Other outputs than classes have none."""
    (figure,) = named("Expected loss of top-1")
    assert (figure.value, figure.detail.partition(" in ")[0]) == ("0.4 points", "-0.3 to 1.7 points")
    assert not named("Expected loss of top-1", expected_loss=None)


def test_a_run_of_an_earlier_version_has_no_expected_loss() -> None:
    """Its summary lacks the figure, and the rest of the headline is there."""
    earlier = {name: value for name, value in SUMMARY.items() if name != "expected_loss"}
    assert headline(earlier, ()) == [figure for figure in headline(SUMMARY, ()) if "Expected" not in figure.name]


def test_size_and_agreement_and_time_have_units() -> None:
    """Size is relative to float, with both sizes beside it."""
    (size,), (agreement,), (time,) = named("Size"), named("Agreement"), named("Time")
    assert (size.value, size.detail) == ("15.0 %", "of float: 1,000 kB → 150 kB of weights and scales")
    assert agreement.value == "98.50 %"
    assert (time.value, time.detail) == ("1:05 min", "on cpu, 1 thread")


def test_latency_is_that_of_the_smallest_batch() -> None:
    """For every number of threads; nothing where it was not measured. A file may take no single images."""
    (figure,) = named("Latency", LATENCIES)
    assert figure.value == "62 %"
    assert figure.detail == (
        "of float on this CPU: 2 → 1.23 ms per image on 1 thread, 2 → 1.23 ms per image on 2 threads"
    )
    assert not named("Latency")
    (many,) = named("Latency", [row for row in LATENCIES if row["batch"] == 32][:1])
    assert many.detail == "of float on this CPU: 2 → 1.23 ms per 32 images on 1 thread"
