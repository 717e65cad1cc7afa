from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import SIZE, Chain, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.export.graph import onnx_model
from acq.export.movement import zero_pads
from acq.network.names import name_of
from acq.network.operators import PADS, operator_of
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan


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
