from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from report.made_run import PLAN

from acq.files.documents import assignment
from acq.report.layers import advice, layer_rows


def row(layer: str, decibels: float, weight_bits: int | None = 4) -> dict[str, Any]:
    return {"layer": layer, "logits_snr_db": decibels, "weight_bits": weight_bits}


def test_the_most_sensitive_layer_is_first() -> None:
    """That is the one with the lowest signal-to-noise ratio; the longest bar is that of the highest."""
    rows = layer_rows([row("a", 20.0), row("b", 10.0), row("c", -3.0)], PLAN)
    assert [(found["layer"], found["bar"]) for found in rows] == [("c", 0.0), ("b", 50.0), ("a", 100.0)]
    assert [found["bar"] for found in layer_rows([row("a", -3.0)], PLAN)] == [0.0]
    assert layer_rows([], PLAN) == []


def test_bits_of_weights_are_shown_as_in_the_plan() -> None:
    """A reduced range is named; what has no weights shows none."""
    rows = layer_rows([row("block.0.conv", 1.0), row("block.1.conv", 2.0), row("sum", 3.0, None)], PLAN)
    assert [found["weights_text"] for found in rows] == ["8 (7-bit range)", "4", ""]


@pytest.mark.parametrize("name", ["layer1.0.conv1", "features.0", "odd name;$(rm)"])
def test_the_advice_is_a_setting_that_a_shell_passes_on(name: str) -> None:
    """Quoted, for one more bit of the most sensitive layer."""
    option, setting = shlex.split(advice([row(name, 1.0), row("other", 2.0)], PLAN) or "")
    assert option == "--set"
    assert assignment(setting) == {"layers": {name: 5}}


@pytest.mark.parametrize(("reduce_range", "first"), [(True, "six"), (False, "seven")])
def test_the_advice_is_for_a_layer_that_gains_by_it(reduce_range: bool, first: str) -> None:
    """Not for a tensor without weights, nor for 7 bits where 8 bits have the range of 7."""
    plan = replace(PLAN, format=replace(PLAN.format, reduce_range=reduce_range))
    rows = [row("sum", 1.0, None), row("eight", 2.0, 8), row("seven", 3.0, 7), row("six", 4.0, 6)]
    assert f"layers.{first}=" in (advice(rows, plan) or "")
    assert advice(rows[:2], plan) is None
