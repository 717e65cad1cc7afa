"""The table of docs/results.md on other tools, from the rows of ``static_quantization.py``."""

from __future__ import annotations

from collections.abc import Iterator

import runs
from case_networks import Network


def other_tools(network: Network) -> Iterator[str]:
    """The table of the other tools' static quantization on a network; nothing where none was measured."""
    rows = [row for row in runs.load("static_quantization") if row["network"] == network.name]
    found = {(f"{row['tool']} {row['version']}", row["images"]): f"{row['top1']:.2f}" for row in rows}
    tools = list(dict.fromkeys(tool for tool, images in found if images != "none"))
    if tools:
        yield "Static quantization of other tools at W8A8, top-1 in percent, by the images that calibrate them"
        yield "([how, and `acq` in the same run](benchmarks/static_quantization.md)):"
        yield ""
        kinds = {"noise": "noise", "finished": "finished images of `acq`", "real": "real images"}
        yield from runs.table(
            ["tool", *kinds.values()], [[tool, *(found.get((tool, kind)) for kind in kinds)] for tool in tools]
        )
        yield ""
