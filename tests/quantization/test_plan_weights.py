"""The widths that a plan gives to weights: first and last layers, reduced ranges, single layers, layers in float."""

from __future__ import annotations

import torch
from helpers import traced
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.quantization.build import build
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import NodePlan, Plan
from acq.quantization.plan import plan
from acq.quantization.roles import LayerWidth


def plan_of(name: str, layers: dict[str, LayerWidth] | None = None) -> Plan:
    return plan(traced(name), NumberFormat.parse("w4a4", "8"), layers=layers or {})


def by_name(found: Plan) -> dict[str, NodePlan]:
    return {node.name: node for node in found.nodes}


def test_first_and_last_layers_are_found_by_position() -> None:
    """They consume the image and produce the scores, whether they are linear or convolutions."""
    assert [entry.weight_bits for entry in plan_of("two linears").nodes if entry.weight_bits] == [8, 8]
    assert [entry.weight_bits for entry in plan_of("dense").nodes if entry.weight_bits] == [8, 4, 8]
    assert [entry.weight_bits for entry in plan_of("all convolutional").nodes if entry.weight_bits] == [8, 8]


def test_eight_bit_weights_may_use_a_range_of_seven() -> None:
    """They stay 8-bit weights, shown with their range; the quantizer has 7 bits, and other widths stay."""
    graph = traced("dense")
    full, reduced = (plan(graph, NumberFormat(4, 8, 8, reduce_range=reduce)) for reduce in (False, True))
    for found, bits in ((full, [8, 4, 8]), (reduced, [7, 4, 7])):
        entries = [entry for entry in found.nodes if entry.weight_bits]
        assert [entry.weight_bits for entry in entries] == [8, 4, 8]
        assert [entry.weight_range_bits for entry in entries] == bits
        assert [layer.weight_quantizer.bits for _, layer in build(graph, found).layers()] == bits
    assert by_name(reduced)["stem.0"].weights == "8 (7-bit range)"
    assert [row["weights"] for row in reduced.rows() if row["weights"]] == ["8 (7-bit range)", "4", "8 (7-bit range)"]
    assert str(reduced).count("8 (7-bit range)") == 2
    assert [entry.output_bits for entry in full.nodes] == [entry.output_bits for entry in reduced.nodes]


def summed_in_pairs(integers: Tensor, x: Tensor) -> Tensor:
    """[K, D] times bytes [D] as CPUs without VNNI do it: two products are added in 16 bits, and saturate there."""
    products = integers.long() * x.long()
    pairs = F.pad(products, (0, products.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(1)


@given(seed=st.integers(0, 10**6), reduce_range=st.booleans())
def test_weights_in_a_range_of_7_bits_do_not_saturate(seed: int, reduce_range: bool) -> None:
    """This holds for any weights and image, and full 8-bit weights fail at the first bright patch."""
    rng = torch.Generator().manual_seed(seed)
    student = build(traced("dense"), plan(traced("dense"), NumberFormat(8, 8, reduce_range=reduce_range)))
    layer = next(layer for _, layer in student.layers())
    quantizer = layer.weight_quantizer
    quantizer.set_qparams(torch.ones(len(layer.weight)))
    ends = torch.tensor([quantizer.qmin, quantizer.qmax])
    extremes = ends[torch.randint(2, layer.weight.shape, generator=rng)].float()
    integers = quantizer.integers(extremes).flatten(1)
    bright = torch.randint(250, 256, (integers.shape[1],), generator=rng)
    exact = (integers.long() * bright).sum(1)
    assert torch.equal(summed_in_pairs(integers, bright), exact) == reduce_range


def test_a_single_layer_may_have_other_bits() -> None:
    """They win over the format's and those of first and last layers; 8 is reduced like any 8; nothing else changes."""
    graph, format = traced("dense"), NumberFormat(4, 4, 8, reduce_range=True)
    usual = plan(graph, format)
    found = plan(graph, format, layers={"stem.*": 2, "middle.0.block.0": 8})
    widths = {entry.name: entry.weight_range_bits for entry in found.nodes if entry.weight_bits}
    assert widths == {"stem.0": 2, "middle.0.block.0": 7, "head.fc": 7}
    assert [entry.output_bits for entry in found.nodes] == [entry.output_bits for entry in usual.nodes]
    assert [layer.weight_quantizer.bits for _, layer in build(graph, found).layers()] == [2, 7, 7]


def test_a_layer_in_float_is_quantized_at_its_output() -> None:
    """Layer and batch norm are floating, the tensor behind them is quantized as before, and other layers stay.

    What only a layer in floating point reads is not quantized.
    """
    usual, found = by_name(plan_of("resnet")), by_name(plan_of("resnet", {"layer1.0.*": "float"}))
    changed = {name for name in found if found[name] != usual[name]}
    layers = {f"layer1.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2")}
    assert changed == layers | {"relu", "layer1.0.relu"}
    assert found["layer1.0.relu"].output_bits is None
    assert all(found[name].floating and found[name].weight_bits is None for name in layers)
    assert found["layer1.0.conv1"].note == "kept in floating point; belongs to layer1.0.bn1"
    assert found["layer1.0.bn1"].output_bits is None
    assert found["layer1.0.bn2"].output_bits == 8
    assert found["relu"].requantize_for == ()  # a layer in floating point takes the stored 8 bits


def test_a_linear_head_in_float_takes_floats() -> None:
    """From the last sum on nothing is rounded. The logits begin at the head, also where it stays in float."""
    found = plan_of("resnet", {"linear": "float"})
    assert [entry.name for entry in found.float_nodes] == ["layer3.0.relu_2", "adaptive_avg_pool2d", "linear"]
    assert by_name(found)["layer3.0.bn2"].output_bits == 8
    assert by_name(found)["linear"].output_bits is None
    assert by_name(plan_of("resnet", {"conv1": "float"}))["layer1.0.conv1"].weight_bits == 4
