"""Sizes and durations as text."""

from __future__ import annotations


def in_kilobytes(count: int) -> str:
    """A number of bytes as text, such as 142 kB or 18.6 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 10_000_000 else f"{count / 1e3:,.0f} kB"


def in_minutes(seconds: float) -> str:
    """A duration as text, such as 1:05 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"
