"""The file means what the student computes: every network, every operator, widths from 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from helpers import NETWORKS, images, student_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.check import Parity, check
from acq.export.graph import onnx_model
from acq.export.operators import OPERATORS
from acq.network.trace import trace
from acq.quantization.calibration import calibrate
from acq.quantization.integers import convert_to_integers
from acq.quantization.plan import NumberFormat, Placement, operator_of, plan
from acq.quantization.student import Student, build

SHAPE = (3, 8, 12)


class Own(nn.Module):
    """Computes with constants of its own, of awkward names, types and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(2))
        self.register_buffer("v0", torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("images", torch.rand(3, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * self.mean + self.v0) * self.images.mean(0) + self.images[1:2, :4]


class Tokens(nn.Module):
    """A linear layer over the channels of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(F.relu(x).flatten(2).transpose(1, 2)))


class Net(nn.Module):
    """A convolution, an operator, and a linear layer over all that it gives."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.operator = operator
        self.head = nn.Linear(operator(torch.zeros(1, 4, 8, 12)).numel(), 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.operator(self.stem(x)).flatten(1))
        return y


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: F.relu(x) * torch.sigmoid(x),
    "constants of its own": Own(),
    "times a number": lambda x: x * 0.5,
    "quotient": lambda x: x / 2.0,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "selu": F.selu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "leaky by default": F.leaky_relu,
    "elu": lambda x: F.elu(x, 0.7),
    "celu": lambda x: F.celu(x, 0.7),
    "sum": lambda x: x + F.relu(x),
    "plus a number": lambda x: x + 0.3,
    "difference": lambda x: torch.tanh(x) - F.relu(x),
    "less a number": lambda x: x - 0.3,
    "from a number": lambda x: 1.5 - x,
    "relu": F.relu,
    "relu after a sum": lambda x: F.relu(x + torch.tanh(x)),
    "relu of what moved": lambda x: F.relu(torch.tanh(x)[:, :, 1:]),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.4, 0.9),
    "clamp": lambda x: x.clamp(-0.2, 0.7),
    "clamp below": lambda x: x.clamp_min(-0.1),
    "clamp above": lambda x: x.clamp_max(0.4),
    "average pool": lambda x: F.avg_pool2d(F.relu(x), 2),
    "padded average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool without padding counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool rounded up": lambda x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average of tiles": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive greatest": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    "mean over places": lambda x: x.mean((2, 3)),
    "mean kept": lambda x: x.mean((-1, -2), keepdim=True),
    "mean over channels": lambda x: x.mean(1, keepdim=True),
    "greatest": lambda x: F.max_pool2d(F.relu(x), 3, 2, 1),
    "greatest with dilation": lambda x: F.max_pool2d(x, 2, 1, 0, 2),
    "reshape": lambda x: x.reshape(-1, 8, 6, 8),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "permute": lambda x: F.relu(x).permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "slice": lambda x: F.relu(x)[:, 1:4:2, :, 2:-1],
    "select": lambda x: F.relu(x)[:, 2] + x[:, -1],
    "pad": lambda x: F.pad(F.relu(x), (1, 2, 0, 3)),
    "pad before a convolution": nn.Sequential(nn.ReLU(), nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(4, 2, 3, 2, 1)),
    "pad with a value": lambda x: F.pad(x, (1, 0), value=0.7),
    "pad by reflection": lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"),
    "pad by repetition": lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"),
    "join of one grid": lambda x: torch.cat([F.relu(x)[:, :2], F.relu(x)[:, 1:]], 1),
    "join of two grids": lambda x: torch.cat([F.relu(x), torch.tanh(x)], 1),
    "split": lambda x: x.split([1, 3], 1)[1] + 1,
    "split evenly": lambda x: F.relu(x).split(3, 2)[2],
    "chunk": lambda x: torch.cat(F.relu(x).chunk(3, 3)[::-1], 3),
    "same padding with dilation": nn.Conv2d(4, 2, 3, padding="same", dilation=(2, 1)),
    "upsample": lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="nearest"),
    "logits behind a movement": lambda x: x,
    "linear over each place": Tokens(),
}
# written, but not reached from a network by torch.export today: other spellings of operators of the cases
SPELLINGS = {
    "aten.view.default", "aten.mul.Scalar", "aten.div.Scalar", "aten.add.Scalar", "aten.sub.Scalar", "aten.t.default",
    "aten.concat.default", "aten.unbind.int", "aten.relu6.default", "aten.rsub.Scalar", "aten.split_with_sizes.default",
    "aten.constant_pad_nd.default", "aten.squeeze.dims", "aten.flatten.using_ints", "aten.chunk.default",
    "aten.split.Tensor", "aten.upsample_nearest2d.default", "aten.upsample_nearest2d.vec",
}  # fmt: skip

# OpenVINO 2026.4 on bytes: zeros around an average pool and values that pad are taken for the byte 0, whatever zero's
# byte is, and a product with constants differs at 8 bits. `acq export` finds it and says so.
AMISS_ON_OPENVINO = {"padded average pool", "pad with a value", "constants of its own"}


@cache
def traced(name: str) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return trace(Net(CASES[name]), SHAPE)


def frozen(name: str, bits: NumberFormat, seed: int = 0, placement: Placement = "deployable") -> Student:
    """A student of a case with weights drawn anew, calibrated and frozen."""
    student = build(traced(name), plan(traced(name), bits, placement))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in student.layers():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) / layer.weight[0].numel() ** 0.5)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=rng) / 4)  # type: ignore[union-attr]
    calibrate(student, [images(16, SHAPE, seed)])
    convert_to_integers(student)
    return student.eval()


def compared(student: Student, folder: Path, size: tuple[int, int, int] = SHAPE, count: int = 24) -> Parity:
    onnx.save(onnx_model(student), folder / "model.onnx")
    return check(folder / "model.onnx", student, images(count, size, 5))


# without VNNI two products of full 8-bit weights are added in 16 bits and saturate (docs/deploying.md)
FULL = pytest.param(
    NumberFormat(8, 8), marks=pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs VNNI")
)


@pytest.mark.parametrize(
    "bits", [NumberFormat(4, 4), FULL, NumberFormat(8, 8, reduce_range=True, power_of_two=True)], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_the_same_in_the_file(name: str, bits: NumberFormat, tmp_path: Path) -> None:
    """Without an engine's optimisations and with them; at 8 bits on any scales a value may be a level beside."""
    found = compared(frozen(name, bits), tmp_path)
    for match in (found.plain, found.optimised):
        assert match.equal >= (100 if bits.activation < 8 or bits.power_of_two else 80)
        assert match.difference < 0.05
    assert found.openvino is not None
    assert found.openvino.integer >= found.integer
    if name not in AMISS_ON_OPENVINO:
        assert found.openvino.match.agreement == 100


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(CASES)), weight=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_any_weights_on_binary_grids(tmp_path: Path, name: str, weight: int, seed: int) -> None:
    """Drawn anew each time, the file's logits are the student's, on integer kernels too."""
    found = compared(frozen(name, NumberFormat(weight, 8, reduce_range=True, power_of_two=True), seed), tmp_path)
    assert found.plain.equal == found.optimised.equal == 100


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(CASES)),
    weight=st.integers(2, 8),
    activation=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    placement=st.sampled_from(["deployable", "relu-only"]),
)
def test_any_weights_and_widths(
    tmp_path: Path, name: str, weight: int, activation: int, seed: int, placement: Placement
) -> None:
    """Drawn anew each time: the file's logits are the student's."""
    found = compared(frozen(name, NumberFormat(weight, activation, reduce_range=True), seed, placement), tmp_path)
    assert found.plain.equal == 100
    assert found.optimised.equal >= 95  # engines sum in another order, in floating point where a placement leaves it


@pytest.mark.parametrize("placement", ["deployable", "relu-only"])
@pytest.mark.parametrize("bits", ["w4a4", "w2a3", "w8a8"])
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unknown operator"}))
def test_a_network_means_the_same_in_the_file(name: str, bits: str, placement: Placement, tmp_path: Path) -> None:
    """All layers of the deployable placement run on integer kernels, the last one too."""
    student = student_of(name, bits, placement, reduce_range=True)
    convert_to_integers(student)
    count = 192 if bits == "w8a8" else 24  # of few images 90 % would be chance
    found = compared(student.eval(), tmp_path, (3, 16, 16), count)
    for match in (found.plain, found.optimised):
        assert match.agreement == 100
        assert match.equal >= (100 if bits != "w8a8" else 90)
    if placement == "deployable":
        assert found.integer == found.layers


def test_every_operator_has_a_case() -> None:
    """Whatever can be written is written above, or is another spelling of it."""
    seen = {operator_of(node) for name in CASES for node in traced(name).graph.nodes if node.op == "call_function"}
    seen |= {
        operator_of(node) for name in NETWORKS for node in student_of(name).graph.nodes if node.op == "call_function"
    }
    assert set(OPERATORS) - seen <= SPELLINGS


def test_what_cannot_be_written_is_named() -> None:
    """With its node, and what can be done without a file."""
    with pytest.raises(RequestError, match=r"cumsum.default of node cumsum cannot be exported.*run folder"):
        onnx_model(student_of("unknown operator"))


def _indices(x: Tensor) -> Tensor:
    greatest, places = F.adaptive_max_pool2d(x, (2, 2), return_indices=True)
    return greatest + places.float()


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (lambda x: F.interpolate(F.relu(x), scale_factor=2.2, mode="nearest"), "by factors that are no integers"),
        (lambda x: F.interpolate(F.relu(x), (12, 18), mode="nearest"), "by factors that are no integers"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), "with ceil_mode and padding that counts"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), "whose windows differ"),
        (lambda x: torch.add(x, x, alpha=2), "with a factor of its own"),
        (_indices, "for its indices"),
    ],
)
def test_what_means_something_else_in_onnx_is_refused(operator: Callable[[Tensor], Tensor], words: str) -> None:
    """Rather than written as what it nearly is."""
    graph = trace(Net(operator), SHAPE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    calibrate(student, [images(16, SHAPE)])
    with pytest.raises(RequestError, match=words):
        onnx_model(student)


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT4"), (4, "INT4"), (5, "INT8"), (8, "INT8")])
def test_weights_are_stored_in_few_bits(bits: int, kind: str) -> None:
    """In 4 where these hold them, as the student's own integers."""
    student = frozen("relu", NumberFormat(bits, 4))
    stored = {tensor.name: tensor for tensor in onnx_model(student).graph.initializer}
    (name, layer), *_ = student.layers()
    weight = next(tensor for key, tensor in stored.items() if key.endswith("conv2d.weight"))
    assert weight.data_type == getattr(TensorProto, kind)
    integers = torch.from_numpy(numpy_helper.to_array(weight).astype("int8"))
    assert torch.equal(integers, layer.weight_quantizer.integers(layer.weight)), name


def test_the_file_says_what_it_is() -> None:
    """Bits, placement, classes and, where known, how images are normalised."""
    student = frozen("relu", NumberFormat(4, 8))
    student.preprocessing = Preprocessing(SHAPE, (0.5, 0.25, 0.125), (1.0, 2.0, 4.0))
    model = onnx_model(student, facts={"model": "mine", "seed": 3})
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == {
        "model": "mine",
        "seed": "3",
        "bits": "w4a8",
        "placement": "deployable",
        "classes": "5",
        "images": "normalised floats [N, C, H, W]",
        "input_size": "3,8,12",
        "mean": "0.5,0.25,0.125",
        "std": "1.0,2.0,4.0",
    }


def test_bytes_need_a_known_normalisation() -> None:
    """Which cannot be guessed."""
    with pytest.raises(RequestError, match="how images are normalised is not known"):
        onnx_model(frozen("relu", NumberFormat(4, 4)), raw_images=True)
