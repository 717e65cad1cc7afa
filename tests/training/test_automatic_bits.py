from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
from helpers import SIZE, student_of, traced
from small_runs import KNOWN, request_
from torch import nn

from acq.errors import RequestError
from acq.network.trace import trace
from acq.quantization.formats import SAME, NumberFormat
from acq.recipe import prepare
from acq.training.automatic_bits import automatic_bits

NAME, BUDGET = "shortcut", 3.5
Width = int | Literal["float"]


def chosen(layers: Mapping[str, Width]) -> dict[str, Width]:
    format = NumberFormat.parse("wautoa4", 8)
    return automatic_bits(traced(NAME), KNOWN, format, "deployable", layers, BUDGET)


@pytest.fixture(scope="module")
def bits() -> dict[str, Width]:
    """What is chosen where the user decides nothing."""
    return chosen({})


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """The number of weights of each layer."""
    return {name: layer.weight.numel() for name, layer in student_of(NAME).layers()}


def test_each_layer_gets_bits_of_its_own(bits: dict[str, Width], sizes: dict[str, int]) -> None:
    """All layers but the first and last are chosen, not all alike, and their mean is near the budget."""
    found = {name: width for name, width in bits.items() if isinstance(width, int)}
    assert found.keys() == sizes.keys() - {"stem.0", "head.fc"}
    assert len(set(found.values())) > 1
    mean = sum(sizes[name] * width for name, width in found.items()) / sum(sizes[name] for name in found)
    assert BUDGET - 0.5 < mean <= BUDGET


def test_bits_that_the_user_decided_stay() -> None:
    """A layer with bits of its own, or in floating point, is not chosen."""
    decided: dict[str, Width] = {"middle.0.one.0": 8, "head.fc": "float"}
    found = chosen(decided)
    assert found.items() >= decided.items()
    assert found["middle.0.two.0"] == 3  # alone it has the budget


def test_a_run_records_its_automatic_bits(bits: dict[str, Width]) -> None:
    """Chosen again for a run, the bits are the same, and the settings and the plan of its student have them."""
    prepared = prepare(request_(name=NAME, bits="auto", budget=BUDGET))
    layers = prepared.config.layers
    plans = {node.name: node.weight_bits for node in prepared.training.context.student.plan.nodes}
    assert layers == bits
    assert {name: plans[name] for name in layers} == layers


def test_nothing_to_choose_is_refused() -> None:
    """In a network of one layer the first and last are all there is, unless they are treated like the others."""
    single = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = trace(single.eval(), SIZE)
    with pytest.raises(RequestError, match=r"every layer has bits by first_last_bits; give --first-last-bits same"):
        automatic_bits(graph, KNOWN, NumberFormat.parse("wautoa4", 8), "deployable", {}, 4.0)
    free = automatic_bits(graph, KNOWN, NumberFormat.parse("wautoa4", SAME), "deployable", {}, 3.0)
    assert free == {"0": 3}
