from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SIZE, Chain, traced
from one_operator import Written, quantizer, some_bytes
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.export.graph import onnx_model
from acq.export.movement import zero_pads
from acq.export.registry import OPERATORS
from acq.export.writer import Writer
from acq.network.names import name_of
from acq.network.operators import PADS, operator_of
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan

aten = torch.ops.aten

X = some_bytes(2, 4, 6, 8)
MOVEMENTS: dict[str, tuple[Any, ...]] = {
    "reshape": (aten.reshape.default, X, [-1, 6, 4, 8]),
    "view": (aten.view.default, X, [2, 8, 24]),
    "view of another name": (aten._unsafe_view.default, X, [2, 192]),
    "flatten": (aten.flatten.using_ints, X, 1, -2),
    "unflatten": (aten.unflatten.int, X, -1, [2, 4]),
    "squeeze": (aten.squeeze.default, X[:, :1, :, :1]),
    "squeeze of one axis": (aten.squeeze.dim, X[:, :1], 1),
    "squeeze of axes": (aten.squeeze.dims, X[:, :1, :1], [1, -2]),
    "unsqueeze": (aten.unsqueeze.default, X, -1),
    "contiguous": (aten.contiguous.default, X),
    "expand": (aten.expand.default, X[:, :1], [-1, 5, -1, 8]),
    "repeat": (aten.repeat.default, X, [1, 3, 1, 2]),
    "repeat of images": (aten.repeat.default, X, [2, 1, 1, 1]),
    "repeat with more axes": (aten.repeat.default, X, [1, 2, 1, 1, 1]),
    "permute": (aten.permute.default, X, [0, -1, 1, 2]),
    "transpose": (aten.transpose.int, X, 1, -1),
    "transposed matrix": (aten.t.default, X[:, :, 0, 0]),
    "slice": (aten.slice.Tensor, X, -1, 1, 7, 3),
    "select": (aten.select.int, X, 2, -1),
    "zeros": (aten.pad.default, X, [1, 2, 0, 3]),
    "zeros of another name": (aten.constant_pad_nd.default, X, [1, 2, -1, 3]),
    "reflection": (aten.pad.default, X, [1, 2, 5, 0], "reflect"),
    "edge": (aten.pad.default, X, [1, 2, 9, 0], "replicate"),
    "circle": (aten.pad.default, X, [1, 8, 6, 0], "circular"),
    "circle of a sequence": (aten.pad.default, X.flatten(2), [3, 48], "circular"),
    "largest": (aten.amax.default, X, [-1, 1]),
    "smallest": (aten.amin.default, X, [2], True),
    "largest of an axis": (aten.max.dim, X, -2),
    "smallest of an axis": (aten.min.dim, X, 1, True),
}


@pytest.mark.parametrize("case", MOVEMENTS)
def test_bytes_are_moved(case: str) -> None:
    """The file has no floats, and each byte is where torch puts it."""
    written = Written(*MOVEMENTS[case])
    assert written.moves_bytes()
    assert written.is_exact()


@pytest.mark.parametrize("value", [-60.0, 0.7, 8.3, 400.0])
def test_other_values_are_padded_behind_the_quantizer(value: float) -> None:
    """Their byte is the student's, also beyond the range."""
    written = Written(aten.constant_pad_nd.default, X, [1, 2, 0, 3], value, behind=quantizer(1.3, 40))
    assert written.kinds.index("Pad") > written.kinds.index("QuantizeLinear")
    assert written.is_exact()


def test_values_are_not_repeated_for_each_image() -> None:
    """The number of images is unknown; nothing similar is written instead."""
    with pytest.raises(RequestError, match="to a number that depends on the batch"):
        Written(aten.expand.default, X, [1, 2, 4, 6, 8])


def test_results_of_which_indices_are_used_are_refused() -> None:
    """Only the values can be moved."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.max.dim, (x, 1))
    graph.call_function(operator.getitem, (node, 1))
    x.meta = node.meta = {"name": "x", "shape": (-1, 4)}
    with pytest.raises(RequestError, match="for its indices"):
        OPERATORS["aten.max.dim"](Writer(), node)


class Pads(nn.Module):
    def __init__(self, pad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return self.pad(F.relu(x))


@pytest.mark.parametrize(
    ("pad", "channels", "wanted"),
    [
        (lambda x: F.pad(x, (1, 2, 3, 4)), 8, (3, 1, 4, 2)),
        (lambda x: F.pad(x, (1, 2)), 8, (0, 1, 0, 2)),
        (lambda x: F.pad(x, (-1, 2)), 8, ()),
        (lambda x: F.pad(x, (1, 2), value=1.0), 8, ()),
        (lambda x: F.pad(x, (1, 2, 1, 2), mode="reflect"), 8, ()),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 10, ()),
    ],
    ids=["zeros", "one axis", "cropping", "ones", "reflection", "channels"],
)
def test_zeros_around_images_are_found(pad: Callable[[Tensor], Tensor], channels: int, wanted: tuple[int, ...]) -> None:
    """They are top, left, bottom and right; everything else is no zero padding of images."""
    graph = trace(Chain(Pads(pad), channels=channels).eval(), SIZE)
    (node,) = [n for n in graph.graph.nodes if n.op == "call_function" and operator_of(n) in PADS]
    node.meta["shape"] = tuple(node.meta["val"].shape)
    assert zero_pads(node) == wanted


def test_other_nodes_pad_nothing() -> None:
    """Neither other operators nor parameters do."""
    nodes = {name_of(node): node for node in traced("resnet").graph.nodes}
    assert zero_pads(nodes["relu"]) == zero_pads(nodes["conv1.weight"]) == ()


def test_convolutions_take_over_zeros_in_front_of_them() -> None:
    """The file then has no Pad, unless another operator consumes the padded tensor too."""

    class Padded(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.conv, self.shared = nn.Conv2d(8, 8, 3), shared

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(F.relu(x), (1, 1, 1, 1))
            return self.conv(x) + (x[:, :, 1:-1, 1:-1] if self.shared else 0)

    for shared in (False, True):
        graph = trace(Chain(Padded(shared)).eval(), SIZE)
        student = build(graph, plan(graph, NumberFormat(4, 4)))
        calibrate(student, [Tensor(4, *SIZE).uniform_(-1, 1)])
        kinds = [node.op_type for node in onnx_model(student).graph.node]
        assert ("Pad" in kinds) is shared
