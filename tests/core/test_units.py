"""Sizes and durations as text."""

from __future__ import annotations

import pytest

from acq.core.units import in_kilobytes, in_minutes


@pytest.mark.parametrize(
    ("count", "text"), [(400, "0 kB"), (1_076_136, "1,076 kB"), (9_999_999, "10,000 kB"), (18_600_000, "18.6 MB")]
)
def test_sizes_are_in_kilobytes_or_megabytes(count: int, text: str) -> None:
    """From ten megabytes on the unit changes."""
    assert in_kilobytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00 min"), (65, "1:05 min"), (59.6, "1:00 min"), (3700, "61:40 min")]
)
def test_durations_are_minutes_and_seconds(seconds: float, text: str) -> None:
    """Seconds are rounded before minutes are taken, so no minute has 60 of them."""
    assert in_minutes(seconds) == text
