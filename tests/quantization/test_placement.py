"""Where a network with attention or layer norms is quantized: what its layers read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import NETWORKS, SIZE, images, traced
from torch import fx, nn
from transformers import TRANSFORMERS, ConvNeXt, Hybrid, ViT, transformer

from acq.network.names import name_of
from acq.network.operators import FLOAT_BY_DESIGN, ROLES, Role
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.layers import QuantLayer
from acq.quantization.node_plan import Plan
from acq.quantization.placement import placement_of
from acq.quantization.plan import plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.rounding import round_layers
from acq.quantization.student import Student, quantizers_off

FORMATS = {bits: NumberFormat.parse(bits, 8) for bits in ("w8a8", "w4a8", "w4a4")}


@cache
def graph_of(name: str) -> fx.GraphModule:
    return trace(transformer(name), SIZE)


def plan_of(name: str, bits: str = "w8a8") -> Plan:
    return plan(graph_of(name), FORMATS[bits], "layers")


def student_of(name: str, bits: str = "w8a8") -> Student:
    student = build(graph_of(name), plan_of(name, bits))
    calibrate(student, [images(16)])
    return student.eval()


def source_of(node: fx.Node) -> fx.Node:
    """Where a value comes from, through what moves values."""
    while node.op == "call_function" and ROLES.get(str(node.target)) == Role.MOVE:
        node = node.all_input_nodes[0]
    return node


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_these_networks_get_the_placement_by_themselves(name: str) -> None:
    """A placement that is given stays."""
    assert placement_of(graph_of(name), "auto") == "layers"
    assert placement_of(graph_of(name), "deployable") == "deployable"


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_stay_deployable(name: str) -> None:
    """Without a product of two computed matrices or a layer norm nothing changes."""
    assert placement_of(traced(name), "auto") == "deployable"
    assert placement_of(traced(name), "layers") == "layers"


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_layer_reads_a_grid_and_only_convolutions_end_in_one_for_others(name: str, bits: str) -> None:
    """Each quantizer is read by a layer, or stands behind a convolution, where it has 8 bits."""
    student = student_of(name, bits)
    modules = dict(student.modules_in_order())
    read = set()
    for node, module in modules.items():
        if isinstance(module, QuantLayer):
            source = source_of(node.all_input_nodes[0])
            assert isinstance(modules.get(source), ActivationQuantizer), name_of(node)
            read.add(source)
    for node, module in modules.items():
        if isinstance(module, ActivationQuantizer) and node not in read:
            assert module.bits == 8
            assert len(node.meta["shape"]) == 4
            assert isinstance(modules.get(source_of(node.all_input_nodes[0])), QuantLayer), module.name


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_read_the_bits_of_activations(name: str) -> None:
    """Whoever else reads a value takes it as it is, or the 8 bits of a convolution."""
    student = student_of(name, "w4a4")
    modules = dict(student.modules_in_order())
    images_ = [node for node in student.graph.nodes if node.op == "placeholder"]
    for node, module in modules.items():
        if isinstance(module, QuantLayer):
            grid = modules[source_of(node.all_input_nodes[0])]
            assert isinstance(grid, ActivationQuantizer)
            of_image = source_of(node.all_input_nodes[0]).all_input_nodes == images_
            assert grid.bits == (8 if of_image else 4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_floats_between_layers_are_no_shortcoming(name: str) -> None:
    """Norms, softmax and products say that they belong there; nothing is missed."""
    found = plan_of(name)
    assert not found.missed_nodes
    assert {node.operator for node in found.float_nodes} & FLOAT_BY_DESIGN
    assert not [node for node in found.float_nodes if "not supported" in node.note]
    assert all(node.note for node in found.float_nodes)


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(1, 8), lambda: nn.InstanceNorm2d(8)])
def test_norms_of_each_image_stay_in_floating_point(norm: Callable[[], nn.Module]) -> None:
    """A convolutional network with such norms stays deployable, and each norm says why it is not on integers."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(), head), SIZE)
    found = plan(graph, FORMATS["w4a4"], placement_of(graph, "auto"))
    assert found.placement == "deployable"
    assert len(found.float_nodes) == 2
    assert all(node.note.startswith("engines compute it in floating point") for node in found.float_nodes)


def test_an_unknown_operator_between_layers_is_missed() -> None:
    """So is a layer that is kept in floating point; each is named apart from what belongs in floats."""

    class Cumulative(ViT):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.block(self.patches(x)).cumsum(1)).mean(1))

    graph = trace(Cumulative().eval(), SIZE)
    found = plan(graph, FORMATS["w8a8"], "layers", {"block.mlp.0": "float"})
    assert [node.name for node in found.missed_nodes] == ["block.mlp.0", "cumsum"]
    assert len(found.float_nodes) > len(found.missed_nodes)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_without_quantizers_the_student_is_the_network(name: str) -> None:
    """Folds, grids and moves change no value in floating point."""
    student, x = student_of(name, "w4a4"), images(4)
    with quantizers_off(student), torch.no_grad():
        torch.testing.assert_close(student(x), transformer(name)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["class token", "shifted windows", "convnext"])
def test_rounding_brings_linear_layers_on_tokens_nearer_to_the_network(name: str) -> None:
    """Least squares over all images and tokens at 4-bit weights, on images that it did not see."""
    student, x, wanted = student_of(name, "w4a8"), images(64, seed=3), transformer(name)
    with torch.no_grad():
        before = (student(x) - wanted(x)).square().mean()
        round_layers(student, [images(64, seed=1), images(64, seed=2)])
        assert (student(x) - wanted(x)).square().mean() < 0.8 * before


def test_a_sum_that_a_convolution_reads_too_is_not_rounded_for_the_sum() -> None:
    """The residual branch of ConvNeXt stays in floating point; the convolution has a grid of its own."""

    class Twice(ConvNeXt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for _ in range(2):
                y = self.narrow(nn.functional.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
                x = x + y.permute(0, 3, 1, 2)
            return self.head(self.out(x.mean((2, 3))))

    entries = {node.name: node for node in plan(trace(Twice().eval(), SIZE), FORMATS["w8a8"], "layers").nodes}
    assert (entries["add"].output_bits, entries["add"].requantize_for) == (None, ("depthwise_2",))


def test_convolutions_of_a_hybrid_run_to_a_grid_each() -> None:
    """Engines run a convolution on integers only if its output is quantized, whoever reads it."""
    found = plan(trace(Hybrid().eval(), SIZE), FORMATS["w4a4"], "layers")
    ends = [node for node in found.nodes if node.operator == "aten.batch_norm.default"]
    assert [node.output_bits for node in ends] == [8, 8]
