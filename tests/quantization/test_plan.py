from __future__ import annotations

import json

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, Largest, conv, images, traced
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.trace import shape_of, trace
from acq.quantization.calibration import calibrate
from acq.quantization.plan import NodePlan, NumberFormat, Placement, Plan, plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import QuantLayer, build, quantizers_off


def plan_of(
    name: str, bits: str = "w4a4", placement: Placement = "deployable", ends: str = "8", addends: str = "8"
) -> Plan:
    return plan(traced(name), NumberFormat.parse(bits, ends, addends), placement)


class AddThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3)


def only(found: Plan, role: str) -> list[NodePlan]:
    return [site for site in found.sites if site.role == role]


@pytest.mark.parametrize(
    ("text", "ends", "wanted"),
    [
        ("w4a4", "8", NumberFormat(4, 4, 8)),
        ("wautoa3", "same", NumberFormat(4, 3)),
        ("W3A5", "same", NumberFormat(3, 5)),
        (" w8a8 ", 4, NumberFormat(8, 8, 4)),
    ],
)
def test_bits_are_parsed(text: str, ends: str | int, wanted: NumberFormat) -> None:
    """Weights and activations are read in either case, and ends as a number or same."""
    assert NumberFormat.parse(text, ends) == wanted


@pytest.mark.parametrize(
    ("text", "ends", "message"),
    [
        ("4", "8", "bits not understood: '4'; write .* w4a4"),
        ("w4a", "8", "w4a4"),
        ("w1a4", "8", "bits out of range: weight 1; give 2 to 8"),
        ("w4a9", "8", "bits out of range: activation 9"),
        ("w4a4", "16", "bits out of range: ends 16"),
        ("w4a4", "none", "ends not understood: 'none'"),
    ],
)
def test_wrong_bits_are_refused(text: str, ends: str, message: str) -> None:
    """The message names the fact and the way out."""
    with pytest.raises(RequestError, match=message):
        NumberFormat.parse(text, ends)


@pytest.mark.parametrize(
    ("addends", "message"),
    [
        ("1", "bits out of range: addend 1; give 2 to 8"),
        ("all", "addends not understood: 'all'"),
        ("3", "addends of 3 bits are fewer than the activations' 4; give as many or more, or same"),
    ],
)
def test_wrong_addends_are_refused(addends: str, message: str) -> None:
    """Like ends, with their own name; also those that are fewer than the activations' bits."""
    with pytest.raises(RequestError, match=message):
        NumberFormat.parse("w4a4", "same", addends)


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_one_site_and_logits_no_quantizer(name: str, placement: Placement) -> None:
    """Also what is folded or moved has no quantizer of its own right after another's."""
    graph = traced(name)
    found = {site.node: site for site in plan_of(name, placement=placement).sites}
    output = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]
    assert found[output.name].bits is None
    for node in graph.graph.nodes:
        if node.op == "call_function" and found[node.name].bits and found[node.name].role in ("fold", "move"):
            assert not found[node.all_input_nodes[0].name].bits
    assert [site.shape for site in found.values()] == [
        shape_of(node) for node in graph.graph.nodes if node.op in ("placeholder", "call_function")
    ]


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unknown operator"}))
def test_deployable_leaves_nothing_floating(name: str) -> None:
    """Every convolution and linear layer reads quantized values, and no site is marked floating."""
    graph, found = traced(name), plan_of(name)
    sites = {site.node: site for site in found.sites}
    assert not found.floating
    for node in graph.graph.nodes:
        if sites.get(node.name) and sites[node.name].weight_bits:
            value = node.args[0]
            while not sites[value.name].bits:
                assert sites[value.name].role in ("move", "join", "activation"), (node, value)
                value = value.all_input_nodes[0]


def test_residual_network_in_the_deployable_placement() -> None:
    """Image, rectifiers, the branch before a sum and the pooled features are quantized; sums after theirs."""
    found = plan_of("resnet", addends="same")
    bits = {site.node: site.bits for site in found.sites if site.bits}
    assert bits.pop("x") == 8
    assert set(bits.values()) == {4}
    assert sorted(site.operator for site in found.sites if site.bits) == (
        ["aten.adaptive_avg_pool2d.default"] + ["aten.batch_norm.default"] * 3 + ["aten.relu.default"] * 7 + ["image"]
    )
    weights = [site.weight_bits for site in found.sites if site.weight_bits]
    assert weights == [8, 4, 4, 4, 4, 4, 4, 8]


@pytest.mark.parametrize(("addends", "wanted"), [("8", 8), ("6", 6), ("4", 4), ("same", 4)])
def test_a_branch_that_is_only_added_has_a_width_of_its_own(addends: str, wanted: int) -> None:
    """Its width is the addends'."""
    found = plan_of("resnet", addends=addends)
    assert [site.bits for site in only(found, "fold") if site.bits] == [wanted] * 3


def test_what_is_added_and_multiplied_is_held_in_the_wider_of_both() -> None:
    """Of a residual network: what sums read has 8 bits, and 4 for the layers that read it too."""
    found = {site.node: site for site in plan_of("resnet").sites}
    representable = {
        name: (site.bits, site.requantize_for) for name, site in found.items() if site.role == "activation"
    }
    assert representable == {
        "relu": (8, ("conv2d_1",)),
        "relu_1": (4, ()),
        "relu_2": (8, ("conv2d_3",)),
        "relu_3": (4, ()),
        "relu_4": (8, ("conv2d_5",)),
        "relu_5": (4, ()),
        "relu_6": (4, ()),
    }
    assert "4 bits for conv2d_1" in found["relu"].reason
    assert not any(site.requantize_for for site in plan_of("resnet", addends="same").sites)
    assert not any(site.requantize_for for site in plan_of("resnet", "w8a8").sites)


def test_values_are_narrowed_where_they_are_read() -> None:
    """Movement keeps the wide values for the sum behind it; a layer that reads what was moved has a grid there."""
    wide = [
        (site.operator, site.bits, site.requantize_for) for site in plan_of("shortcut").sites if site.requantize_for
    ]
    assert wide == [
        ("aten.max_pool2d.default", None, ("conv2d_1",)),
        ("aten.add.Tensor", 8, ("conv2d_2",)),
    ]


def test_values_are_narrowed_for_what_multiplies_them_alone() -> None:
    """What only clips reads them as they are held, and rounds once; what is joined for a sum keeps its 8 bits."""
    found = {site.node: site for site in plan_of("clipped").sites if site.bits or site.requantize_for}
    assert found["relu6"].bits == 4
    assert {name: site.requantize_for for name, site in found.items() if site.requantize_for} == {
        "add_25": ("conv2d_2", "conv2d_3")
    }
    assert {name: site.bits for name, site in found.items() if site.role in ("fold", "join")} == {
        "batch_norm_default": 8,
        "batch_norm_default_1": 8,
        "batch_norm_default_2": 8,
        "batch_norm_default_3": 8,
        "cat": 8,
    }


@pytest.mark.parametrize("addends", ["8", "6", "same"])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_multiply_the_activations_width(name: str, addends: str) -> None:
    """Whatever is added beside them, all layers but the image's read 4 bits."""
    graph, found = traced(name), plan_of(name, addends=addends)
    student = build(graph, found)
    for node, layer in student.placed():
        value = node.all_input_nodes[0]
        while isinstance(layer, QuantLayer) and value.op == "call_function":
            value = value.all_input_nodes[0]
        grid = student.get_submodule(str(value.target)) if value.op == "call_module" else None
        if isinstance(layer, QuantLayer) and isinstance(grid, ActivationQuantizer):
            assert grid.bits == (8 if grid.name == "x" else 4), node


def test_a_branch_that_a_layer_reads_too_is_no_mere_addend() -> None:
    """In a chain, and where a number alone is added, outputs have the activations' width."""
    assert [site.bits for site in only(plan_of("bottleneck"), "fold")] == [4, 4, 4]
    shifted = plan(trace(Chain(conv(8, 8), AddThree()), SIZE), NumberFormat(4, 4))
    assert [site.bits for site in only(shifted, "fold") if site.bits] == [4, 4]
    literature = plan_of("resnet", placement="relu-only")
    assert {site.bits for site in literature.sites if site.bits} == {4}


def test_relu_only_is_the_literature_setting() -> None:
    """Only rectifiers are quantized, weights as before, and the rest is reported as floating."""
    found = plan_of("resnet", placement="relu-only", ends="same")
    assert {site.operator for site in found.sites if site.bits} == {"aten.relu.default"}
    assert {site.weight_bits for site in found.sites if site.weight_bits} == {4}
    assert {site.operator for site in found.floating} >= {"image", "aten.adaptive_avg_pool2d.default"}


@pytest.mark.parametrize("name", ["silu", "hardswish"])
def test_smooth_functions_read_eight_bits(name: str) -> None:
    """The input of a smooth non-linearity has the inner width, its output the activations'."""
    found = plan_of(name)
    for site in only(found, "smooth"):
        assert site.bits == 4
    assert only(found, "fold")[0].bits == 8


def test_decomposed_swish_is_one_table() -> None:
    """In x * sigmoid(x) both factors have the inner width, the product the activations'."""
    found = plan_of("swish product")
    assert [site.bits for site in only(found, "smooth")] == [8, 8]
    assert [site.bits for site in only(found, "product")] == [4, 4]
    literature = plan_of("swish product", placement="relu-only")
    assert [site.role for site in literature.sites if site.bits] == ["product", "product"]


def test_shuffle_moves_values_without_a_new_grid() -> None:
    """Split, view and transpose have no quantizer; the join of two grids has one."""
    found = plan_of("shuffle")
    assert not any(site.bits for site in only(found, "move"))
    assert [site.bits for site in only(found, "join")] == [4]


def test_norm_before_convolution_becomes_a_depthwise_one() -> None:
    """A batch norm that follows no convolution of its own is a layer with quantized weights."""
    assert [site.weight_bits for site in only(plan_of("pre-activation"), "rescale")] == [4, 4]


def test_unknown_operators_are_named() -> None:
    """An operator outside the vocabulary stays float with that reason, in the table too."""
    found = plan_of("unknown operator")
    (site,) = found.floating
    assert site.reason == "operator aten.cumsum.default is outside the vocabulary"
    assert site.reason in str(found)


def test_operators_of_several_results_stay_float() -> None:
    """What returns a tuple has no value to quantize: it is listed as floating and the network still runs."""
    graph = trace(Chain(Largest(), conv(8, 8)), SIZE)
    found = plan(graph, NumberFormat(8, 8))
    assert [site.operator for site in found.floating] == ["aten.max.dim"]
    student = build(graph, found)
    calibrate(student, [images(8)])
    assert student(images(3)).shape == (3, 5)


def test_first_and_last_layers_are_found_by_position() -> None:
    """Ends are what reads the image and what makes the scores, be that linear or a convolution."""
    assert [site.weight_bits for site in plan_of("two linears").sites if site.weight_bits] == [8, 8]
    assert [site.weight_bits for site in plan_of("dense").sites if site.weight_bits] == [8, 4, 8]
    assert [site.weight_bits for site in plan_of("all convolutional").sites if site.weight_bits] == [8, 8]


def test_plan_prints_and_serialises() -> None:
    """The table has a line a site under its head, aligned, and the rows are JSON."""
    found = plan_of("resnet")
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found.sites)
    column = lines[0].index("role")
    assert all(line[column - 1] == " " for line in lines)
    assert json.loads(json.dumps(found.rows())) == found.rows()


def test_planning_is_pure() -> None:
    """Two plans of one graph are equal and the graph's code is unchanged."""
    graph = traced("shuffle")
    code = graph.code
    assert plan(graph, NumberFormat(4, 4)) == plan(graph, NumberFormat(4, 4))
    assert graph.code == code


def test_unknown_placement_is_refused() -> None:
    """The message lists the placements."""
    with pytest.raises(RequestError, match="deployable, relu-only"):
        plan(traced("resnet"), NumberFormat(4, 4), "relu")  # type: ignore[arg-type]


def test_weights_of_8_bits_may_keep_to_7() -> None:
    """Where asked, 8 becomes 7 and says why; other widths and activations stay."""
    graph = traced("dense")
    whole, reduce_range = (
        plan(graph, NumberFormat(4, 8, 8, reduce_range=reduce_range)) for reduce_range in (False, True)
    )
    assert [site.weight_bits for site in whole.sites if site.weight_bits] == [8, 4, 8]
    assert [site.weight_bits for site in reduce_range.sites if site.weight_bits] == [7, 4, 7]
    assert all("7 of their 8 bits" in site.reason for site in reduce_range.sites if site.weight_bits == 7)
    assert [site.bits for site in whole.sites] == [site.bits for site in reduce_range.sites]


def summed_in_pairs(integers: Tensor, x: Tensor) -> Tensor:
    """[K, D] times bytes [D] as CPUs without VNNI do it: two products are added in 16 bits, and saturate there."""
    products = integers.long() * x.long()
    pairs = F.pad(products, (0, products.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(1)


@given(seed=st.integers(0, 10**6), reduce_range=st.booleans())
def test_weights_of_7_bits_do_not_saturate(seed: int, reduce_range: bool) -> None:
    """Whatever the weights and the image, where those of 8 bits go wrong at the first bright patch."""
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


class Scaled(nn.Module):
    """A factor a channel, cut out of a longer one and reshaped on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * self.factor[2:10].view(1, -1, 1, 1))


def test_a_constant_may_be_moved_first() -> None:
    """It is no value on a grid: what it multiplies stays float, and the student computes what the network does."""
    graph = trace(Chain(Scaled(), conv(8, 8), nn.ReLU()), SIZE)
    found = plan(graph, NumberFormat(4, 4))
    (product,) = only(found, "float")
    assert product.operator == "aten.mul.Tensor"
    assert "floating-point constant" in product.reason
    assert any(site.reason == "moves values of a constant" for site in found.sites)
    student = build(graph, found)
    calibrate(student, [images(8)])
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(images(8)), graph(images(8)), rtol=1e-4, atol=1e-4)


def test_a_single_layer_may_have_other_bits() -> None:
    """Over those of all and of ends; 8 are reduced like any 8, and nothing else changes."""
    graph = traced("dense")
    usual = plan(graph, NumberFormat(4, 4, 8, reduce_range=True))
    layers = [site.node for site in usual.sites if site.weight_bits]
    found = plan(graph, NumberFormat(4, 4, 8, reduce_range=True), layers={layers[0]: 2, layers[1]: 8})
    widths = {site.node: site.weight_bits for site in found.sites if site.weight_bits}
    assert [widths[name] for name in layers] == [2, 7, 7]
    assert [site.bits for site in found.sites] == [site.bits for site in usual.sites]
    student = build(graph, found)
    assert [layer.weight_quantizer.bits for _, layer in student.layers()] == [2, 7, 7]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"conv2d_11": 4}, "layer 'conv2d_11' has no weights to quantize .*did you mean 'conv2d_1'"),
        ({"relu": 4}, "layer 'relu' has no weights to quantize"),
        ({"conv2d": 1}, r"bits out of range: layers\.conv2d 1; give 2 to 8"),
        ({"conv2d": 9}, "bits out of range"),
    ],
)
def test_a_wrong_layer_is_told(layers: dict[str, int], words: str) -> None:
    """By name, with the nearest that there is."""
    with pytest.raises(RequestError, match=words):
        plan(traced("dense"), NumberFormat(4, 4), layers=layers)
