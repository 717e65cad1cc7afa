"""The rows of the sensitivity table, and the advice that follows from them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from acq.quantization.node_plan import Plan

SHOWN = 10  # rows that are not folded


def layer_rows(layers: Sequence[Mapping[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The sensitivities as rows, the most sensitive layer first.

    Args:
        layers: The sensitivities of ``diagnostics.json``, with the signal-to-noise ratio of the logits in decibels.
        plan: The plan of the student.

    Returns:
        Each row with the bits of its weights as text (``weights_text``) and the length of its bar in percent (``bar``).
    """
    weights = {node.name: node.weights for node in plan.nodes}
    ordered = sorted(layers, key=lambda row: float(row["logits_snr_db"]))
    longest = max((float(row["logits_snr_db"]) for row in layers), default=0.0)
    return [
        {
            **row,
            "weights_text": weights.get(row["layer"], ""),
            "bar": round(100 * max(0.0, row["logits_snr_db"]) / longest, 1) if longest > 0 else 0.0,
        }
        for row in ordered
    ]


def advice(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str | None:
    """The option that gives one more bit to the most sensitive layer whose weights can have it.

    Args:
        rows: The sensitivities, the most sensitive layer first.
        plan: The plan of the student.

    Returns:
        The option, quoted for a shell; None if every layer has the most bits.
    """
    most = 7 if plan.format.reduce_range else 8  # weights of 8 bits with a reduced range are no finer than those of 7
    for row in rows:
        bits = row["weight_bits"]
        if bits is not None and bits < most:
            return "--set " + shlex.quote(f"layers.{row['layer']}={bits + 1}")
    return None
