"""Compares the results of two commits: prints a table of all rows that docs/benchmarks/conformance.json had.

    python benchmarks/compare.py 7dbc51d 7befc58

Each commit may be shortened. A line is a case on a device with its settings, and the seeds that have rows of both
commits. Rows that were replaced are found in the history of the repository.

- **Difference:** mean of the new top-1 minus the old one, seed by seed, in percentage points, ± standard deviation.
- **Seconds:** mean of the new times over that of the old ones. It says little where the machines differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import runs

TITLES = ("case", "settings", "device", "seeds", "old top-1 %", "new top-1 %", "difference", "seconds, new / old")


def compared(rows: Sequence[runs.Row], old: str, new: str) -> Iterator[list[Any]]:
    """A line per case, device and settings that has rows of both commits.

    Args:
        rows: Of all commits.
        old: The beginning of one commit.
        new: The beginning of the other.
    """
    for group in runs.groups(rows, ("case", "device", "settings")):
        before, after = (
            runs.by_seed(row for row in group if str(row["commit"]).startswith(commit)) for commit in (old, new)
        )
        seeds = sorted(before.keys() & after.keys())
        if seeds:
            first, second = ([found[seed] for seed in seeds] for found in (before, after))
            changes = [b["top1"] - a["top1"] for a, b in zip(first, second, strict=True)]
            seconds = sum(row["seconds"] for row in second) / sum(row["seconds"] for row in first)
            figures = [runs.top1(first), runs.top1(second), runs.gain(changes)]
            settings = group[0].get("settings") or {}
            shown = ", ".join(f"{key}={value}" for key, value in settings.items()) or None
            yield [group[0]["case"], shown, group[0]["device"], ", ".join(map(str, seeds)), *figures, f"{seconds:.2f}"]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; 1 where no case has rows of both commits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit, or its beginning")
    parser.add_argument("new", help="another one")
    args = parser.parse_args(words)
    lines = list(compared(runs.history("conformance"), args.old, args.new))
    if not lines:
        print(f"no case has rows of {args.old} and {args.new}", file=sys.stderr)
        return 1
    print("\n".join(runs.table(TITLES, lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
