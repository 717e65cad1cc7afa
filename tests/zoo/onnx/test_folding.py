"""What a file computes from constants alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import SIZE, images, settled
from onnx import helper
from onnx_files import exported, model_of, on_onnxruntime
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.trace import trace
from acq.zoo import resolve
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import graph_of

RNG = np.random.default_rng(0)
PARTS = ("weight", "bias", "mean", "variance")


def normalised(source: str, shape: tuple[int, ...], **attributes: float) -> onnx.ModelProto:
    """A model that adds a norm in training mode of ``source``, which is ``x`` or a constant, to its input."""
    constants = {part: abs(RNG.standard_normal(shape[1])) for part in PARTS} | {"table": RNG.standard_normal(shape)}
    norm = helper.make_node("BatchNormalization", [source, *PARTS], ["v", "m", "s"], training_mode=1, **attributes)
    return model_of([norm, helper.make_node("Add", ["x", "v"], ["y"])], [1, *shape[1:]], constants)


@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 4, 2, 2), (6, 4)])
@pytest.mark.parametrize("attributes", [{}, {"epsilon": 0.1, "momentum": 0.5}])
def test_a_norm_of_constants_has_their_statistics(shape: tuple[int, ...], attributes: dict[str, float]) -> None:
    """It is computed at once, as by the runtime: weights are standardised so."""
    model = normalised("table", shape, **attributes)
    graph, given = folded(graph_of(model, "x", ("y",))), images(1, shape[1:])  # type: ignore[arg-type]
    assert [node.kind for node in graph.nodes] == ["Add"]
    wanted = on_onnxruntime(model, given)[0]
    np.testing.assert_allclose(given.numpy() + graph.constants["v"], wanted, rtol=1e-4, atol=1e-5)


def test_its_running_statistics_are_known() -> None:
    """They are the old ones, and a part of the new ones."""
    model = normalised("table", (3, 4, 2), momentum=0.75)
    graph = folded(graph_of(model, "x", ("v", "m", "s")))
    table = graph.constants["table"]
    for name, part, own in (("m", "mean", table.mean((0, 2))), ("s", "variance", table.var((0, 2)))):
        np.testing.assert_allclose(graph.constants[name], 0.75 * graph.constants[part] + 0.25 * own, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 4, 2, 2)])
def test_a_norm_of_images_in_training_mode_is_refused(shape: tuple[int, ...]) -> None:
    """Its answer for an image would depend on the others."""
    with pytest.raises(
        RequestError,
        match=r"BatchNormalization.*is in training mode; nothing before it can be named",
    ):
        folded(graph_of(normalised("x", shape), "x", ("y",)))


class Standardised(nn.Conv2d):
    """A convolution whose weight is normalised for each output channel, as in networks without norms."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_standardised_weights_are_read(dynamo: bool, free: bool, tmp_path: Path) -> None:
    """Both exporters of torch write them so that they become weights of layers."""
    network = settled(nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 5, 3), nn.Flatten()))
    file = exported(network, tmp_path / "a.onnx", SIZE, dynamo=dynamo, folded=not free, free=free)
    graph, given = trace(resolve(str(file), mean=(0.5,) * 3, std=(0.25,) * 3).model, SIZE), images(3)
    assert sum(node.target is torch.ops.aten.conv2d.default for node in graph.graph.nodes) == 2
    torch.testing.assert_close(graph(given)[0], network(given), rtol=1e-4, atol=1e-4)
