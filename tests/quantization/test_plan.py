from __future__ import annotations

import json

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, Largest, conv, images, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.constants import shape_of
from acq.network.names import name_of
from acq.network.operators import Role
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.layers import QuantLayer
from acq.quantization.node_plan import NodePlan, Placement, Plan
from acq.quantization.plan import plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import quantizers_off


def plan_of(
    name: str,
    bits: str = "w4a4",
    placement: Placement = "deployable",
    first_last_bits: str = "8",
    add_bits: str = "8",
) -> Plan:
    return plan(traced(name), NumberFormat.parse(bits, first_last_bits, add_bits), placement)


def by_name(found: Plan) -> dict[str, NodePlan]:
    return {node.name: node for node in found.nodes}


def only(found: Plan, role: Role) -> list[NodePlan]:
    return [node for node in found.nodes if node.role == role]


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_has_an_entry_and_logits_no_quantizer(name: str, placement: Placement) -> None:
    """Entries have the public names and shapes of the trace; a folded or moved tensor has no second quantizer."""
    graph = traced(name)
    nodes = [node for node in graph.graph.nodes if node.op in ("placeholder", "call_function")]
    found = by_name(plan_of(name, placement=placement))
    assert list(found) == [name_of(node) for node in nodes]
    assert [entry.shape for entry in found.values()] == [shape_of(node) for node in nodes]
    (logits,) = graph.graph.output_node().all_input_nodes
    assert found[name_of(logits)].output_bits is None
    for node in nodes:
        entry = found[name_of(node)]
        if entry.output_bits and entry.role in (Role.FOLD, Role.MOVE):
            assert not found[name_of(node.all_input_nodes[0])].output_bits


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unknown operator"}))
def test_deployable_leaves_nothing_in_float(name: str) -> None:
    """Every convolution and linear layer takes quantized values, and no node is floating."""
    graph, found = traced(name), plan_of(name)
    entries = by_name(found)
    assert not found.float_nodes
    for node in graph.graph.nodes:
        if name_of(node) in entries and entries[name_of(node)].weight_bits:
            value = node.args[0]
            while not entries[name_of(value)].output_bits:
                assert entries[name_of(value)].role in (Role.MOVE, Role.CONCAT, Role.RECTIFIER), (node, value)
                value = value.all_input_nodes[0]


def test_residual_network_in_the_deployable_placement() -> None:
    """Image, rectifiers, branches before an addition and pooled features are quantized, additions after their relu."""
    found = plan_of("resnet", add_bits="same")
    bits = {entry.name: entry.output_bits for entry in found.nodes if entry.output_bits}
    assert bits.pop("image") == 8
    assert set(bits.values()) == {4}
    assert sorted(bits) == [
        "adaptive_avg_pool2d",
        *[f"layer{block}.0.{name}" for block in (1, 2, 3) for name in ("bn2", "relu", "relu_2")],
        "relu",
    ]
    weights = [entry.weight_bits for entry in found.nodes if entry.weight_bits]
    assert weights == [8, 4, 4, 4, 4, 4, 4, 8]


@pytest.mark.parametrize(("add_bits", "wanted"), [("8", 8), ("6", 6), ("4", 4), ("same", 4)])
def test_a_branch_that_is_only_added_has_the_bits_of_additions(add_bits: str, wanted: int) -> None:
    """Its width does not depend on the activations' width."""
    found = plan_of("resnet", add_bits=add_bits)
    assert [entry.output_bits for entry in only(found, Role.FOLD) if entry.output_bits] == [wanted] * 3


def test_a_tensor_that_is_added_and_multiplied_is_requantized() -> None:
    """It is stored in the addition's 8 bits, and requantized to 4 for the layer; with equal widths it is not."""
    found = by_name(plan_of("resnet"))
    stored = {name: (e.output_bits, e.requantize_for) for name, e in found.items() if e.role == Role.RECTIFIER}
    assert stored == {
        "relu": (8, ("layer1.0.conv1",)),
        "layer1.0.relu": (4, ()),
        "layer1.0.relu_2": (8, ("layer2.0.conv1",)),
        "layer2.0.relu": (4, ()),
        "layer2.0.relu_2": (8, ("layer3.0.conv1",)),
        "layer3.0.relu": (4, ()),
        "layer3.0.relu_2": (4, ()),
    }
    assert found["relu"].note == "requantized to 4 bits for layer1.0.conv1"
    assert not any(entry.requantize_for for entry in plan_of("resnet", add_bits="same").nodes)
    assert not any(entry.requantize_for for entry in plan_of("resnet", "w8a8").nodes)


def test_values_are_requantized_where_they_are_consumed() -> None:
    """A movement keeps the 8 bits for the addition behind it; the layer that consumes its output has a requantizer."""
    found = plan_of("shortcut")
    assert [(e.operator, e.output_bits, e.requantize_for) for e in found.nodes if e.requantize_for] == [
        ("aten.max_pool2d.default", None, ("middle.0.one.0",)),
        ("aten.add.Tensor", 8, ("middle.0.two.0",)),
    ]


def test_only_multiplications_requantize() -> None:
    """A rectifier takes the stored values and rounds once; a concatenation for an addition keeps its 8 bits."""
    found = by_name(plan_of("clipped"))
    assert found["middle.0.relu6"].output_bits == 4
    assert {name: entry.requantize_for for name, entry in found.items() if entry.requantize_for} == {
        "middle.0.add": ("middle.0.left.0", "middle.0.right.0")
    }
    bits = {name: e.output_bits for name, e in found.items() if e.role in (Role.FOLD, Role.CONCAT) and e.output_bits}
    assert bits == dict.fromkeys(
        ["stem.1", "middle.0.inner.1", "middle.0.left.1", "middle.0.right.1", "middle.0.cat"], 8
    )


@pytest.mark.parametrize("add_bits", ["8", "same"])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_multiply_the_activations_width(name: str, add_bits: str) -> None:
    """Whatever is added beside them, all layers except the first take 4 bits, and batch norms of their own 8."""
    graph, found = traced(name), plan_of(name, add_bits=add_bits)
    student = build(graph, found)
    for node, layer in student.modules_in_order():
        value = node.all_input_nodes[0]
        while isinstance(layer, QuantLayer) and value.op == "call_function":
            value = value.all_input_nodes[0]
        quantizer = student.get_submodule(str(value.target)) if value.op == "call_module" else None
        if isinstance(layer, QuantLayer) and isinstance(quantizer, ActivationQuantizer):
            rescales = by_name(found)[name_of(node)].role == Role.RESCALE
            assert quantizer.bits == (8 if quantizer.name == "image" or rescales else 4), node


class AddThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3)


def test_a_chain_has_no_bits_of_additions() -> None:
    """Outputs in a chain, beside an added number, and in the relu-only placement have the activations' width."""
    assert [entry.output_bits for entry in only(plan_of("bottleneck"), Role.FOLD)] == [4, 4, 4]
    shifted = plan(trace(Chain(conv(8, 8), AddThree()), SIZE), NumberFormat(4, 4))
    assert [entry.output_bits for entry in only(shifted, Role.FOLD) if entry.output_bits] == [4]
    assert [entry.output_bits for entry in only(shifted, Role.RECTIFIER)] == [4]
    literature = plan_of("resnet", placement="relu-only")
    assert {entry.output_bits for entry in literature.nodes if entry.output_bits} == {4}


def test_relu_only_is_the_setting_of_the_literature() -> None:
    """Only rectifiers are quantized, weights as in the other placement, and the rest is reported as floating."""
    found = plan_of("resnet", placement="relu-only", first_last_bits="same")
    assert {entry.operator for entry in found.nodes if entry.output_bits} == {"aten.relu.default"}
    assert {entry.weight_bits for entry in found.nodes if entry.weight_bits} == {4}
    assert {entry.operator for entry in found.float_nodes} >= {"image", "aten.adaptive_avg_pool2d.default"}


@pytest.mark.parametrize("name", ["silu", "hardswish"])
def test_smooth_nonlinearities_take_eight_bits(name: str) -> None:
    """Their input has the width of nonlinearities, their output that of activations."""
    found = plan_of(name)
    assert {entry.output_bits for entry in only(found, Role.NONLINEARITY)} == {4}
    assert only(found, Role.FOLD)[0].output_bits == 8


def test_a_gate_of_its_own_input_is_one_table() -> None:
    """In x * tanh(x) both factors have the width of nonlinearities; the product counts as a rectifier."""
    found = plan_of("gate product")
    assert [entry.output_bits for entry in only(found, Role.NONLINEARITY)] == [8, 8]
    assert [entry.output_bits for entry in only(found, Role.PRODUCT)] == [4, 4]
    literature = plan_of("gate product", placement="relu-only")
    assert [entry.role for entry in literature.nodes if entry.output_bits] == [Role.PRODUCT, Role.PRODUCT]


def test_movement_needs_no_quantizer() -> None:
    """Split, view and transpose have none; a concatenation of two quantized tensors has one."""
    found = plan_of("shuffle")
    assert not any(entry.output_bits for entry in only(found, Role.MOVE))
    assert [entry.output_bits for entry in only(found, Role.CONCAT)] == [4]


@pytest.mark.parametrize("bits", ["w2a2", "w4a4", "w8a8"])
def test_a_batch_norm_before_its_convolution_is_a_layer(bits: str) -> None:
    """It has one weight per channel, with 8 bits at every width, and takes the stored values without requantizing."""
    found = plan_of("pre-activation", bits)
    assert [entry.weight_bits for entry in only(found, Role.RESCALE)] == [8, 8]
    names = {entry.name for entry in only(found, Role.RESCALE)}
    assert not any(names & set(entry.requantize_for) for entry in found.nodes)


def test_unknown_operators_are_named() -> None:
    """They stay in floating point with a note, which the table shows; their output is quantized."""
    found = plan_of("unknown operator")
    (entry,) = found.float_nodes
    assert (entry.name, entry.output_bits) == ("middle.0.cumsum", 4)
    assert entry.note == "operator aten.cumsum.default is not supported"
    assert entry.note in str(found)


def test_operators_with_several_results_stay_in_float() -> None:
    """A tuple is no tensor to quantize: the operator is listed as floating, and the network still runs."""
    graph = trace(Chain(Largest(), conv(8, 8)), SIZE)
    found = plan(graph, NumberFormat(8, 8))
    assert [entry.operator for entry in found.float_nodes] == ["aten.topk.default"]
    student = build(graph, found)
    calibrate(student, [images(8)])
    assert student(images(3)).shape == (3, 5)


def test_a_plan_is_a_table_and_rows_of_json() -> None:
    """The table has one aligned line per node under its head; rows are JSON values with the text of the table."""
    found = plan_of("resnet")
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found.nodes)
    column = lines[0].index("role")
    assert all(line[column - 1] == " " for line in lines)
    assert json.loads(json.dumps(found.rows())) == found.rows()


def test_no_name_of_fx_is_shown() -> None:
    """Neither table nor rows have names such as conv2d_1 or batch_norm_default."""
    text = f"{plan_of('resnet')} {plan_of('clipped').rows()}"
    assert "conv2d_1" not in text
    assert "batch_norm_default" not in text


def test_planning_is_pure() -> None:
    """Two plans of one graph are equal, and the graph's code does not change."""
    graph = traced("shuffle")
    code = graph.code
    assert plan(graph, NumberFormat(4, 4)) == plan(graph, NumberFormat(4, 4))
    assert graph.code == code


def test_an_unknown_placement_is_refused() -> None:
    """The message lists the placements."""
    with pytest.raises(RequestError, match="'relu' is unknown; give one of deployable, layers, relu-only"):
        plan(traced("resnet"), NumberFormat(4, 4), "relu")  # type: ignore[arg-type]


class Scaled(nn.Module):
    """One factor per channel, whole or cut out of a longer vector and reshaped."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 12 if cut else 8).view(-1, *(1,) * (0 if cut else 2)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * (self.factor[2:10].view(1, -1, 1, 1) if self.cut else self.factor))


def test_a_moved_constant_is_a_constant_like_others() -> None:
    """Its product has the role of one with a whole constant, and the student computes what the network does."""
    cut, whole = (trace(Chain(Scaled(each), conv(8, 8), nn.ReLU()), SIZE) for each in (True, False))
    found = plan(cut, NumberFormat(4, 4))
    assert [(entry.operator, entry.role) for entry in found.nodes] == [
        (entry.operator, entry.role) for entry in plan(whole, NumberFormat(4, 4)).nodes
    ]
    student = build(cut, found)
    calibrate(student, [images(8)])
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(images(8)), cut(images(8)), rtol=1e-4, atol=1e-4)


class Heads(nn.Module):
    """Two heads of a detector, joined to one map of values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.present, self.kind = conv(3, 8), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return torch.cat([self.present(x).sigmoid(), self.kind(x).softmax(1)], 1)


ENDS = {
    "joined heads": Heads(),
    "upsampled": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), nn.Upsample(scale_factor=2, mode="bilinear")),
    "shuffled": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12), nn.Hardtanh(0, 1), nn.PixelShuffle(2)),
    "pooled": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_no_layer_reads_has_at_least_eight_bits(end: str) -> None:
    """Few bits pay where a layer multiplies them; behind the last layer they would only blur the scores."""
    found = plan(trace(ENDS[end].eval(), SIZE), NumberFormat.parse("w4a4", "8"))
    weighted = [index for index, node in enumerate(found.nodes) if node.weight_bits]
    inner = [node.output_bits for node in found.nodes[1 : weighted[1]] if node.output_bits]
    behind = [node.output_bits for node in found.nodes[weighted[1] :] if node.output_bits]
    assert inner == [4]
    assert behind == [8] * len(behind)


def test_heads_that_are_joined_at_the_end_are_scores_themselves() -> None:
    found = plan(trace(Heads().eval(), SIZE), NumberFormat.parse("w4a4", "8"))
    assert [node.output_bits for node in found.nodes if node.output_bits] == [8, 4]
