"""Numbers that a file takes from a flat tensor by a table of places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import images, settled
from onnx import helper
from onnx_files import exported, model_of, on_onnxruntime
from torch import Tensor, nn

from acq import zoo
from acq.zoo.onnx.flat import by_image
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import Graph, graph_of
from acq.zoo.onnx.network import OnnxNetwork
from acq.zoo.onnx.trial import tried

SIZE = (4, 3)
PLACES = np.arange(12)
TABLES = {
    "all, in order": PLACES.reshape(4, 3, 1),
    "turned": PLACES.reshape(4, 3).T,
    "some, some twice": np.array([[0, 5], [5, 11]]),
    "a row": np.array([3, 4, 5]),
}


def model_for(table: np.ndarray, images: int = 1, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """A file that makes its images flat and takes numbers by a table."""
    nodes = [helper.make_node("Reshape", ["x", "a"], ["v"]), helper.make_node("Gather", ["v", "t"], ["y"])]
    return model_of(nodes, [images, *SIZE], {"a": np.array([-1]), "t": table}, outputs)


def graph_for(model: onnx.ModelProto) -> Graph:
    return folded(graph_of(model, "x", tuple(value.name for value in model.graph.output)))


def computed(graph: Graph, images: Tensor, fixed: int) -> np.ndarray:
    changes = tried(graph, torch.empty(104_729, *SIZE, device="meta"), fixed)
    return OnnxNetwork(graph, fixed=fixed, changes=changes)(images)["y"].numpy()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("fixed", [1, 2])
def test_each_image_gives_its_own_numbers(name: str, fixed: int) -> None:
    """A batch has the values that the runtime gives for as many images as the file takes, one part after the other."""
    table = np.stack([TABLES[name] + 12 * place for place in range(fixed)])
    model, given = model_for(table, fixed), images(4, SIZE)  # type: ignore[arg-type]
    wanted = np.concatenate([on_onnxruntime(model, part)[0] for part in given.split(fixed)])
    np.testing.assert_array_equal(computed(by_image(graph_for(model), fixed), given, fixed), wanted)


@pytest.mark.parametrize("table", [TABLES["turned"], np.stack([PLACES, PLACES[::-1] + 12]), np.array([[-1]])])
def test_other_tables_stay(table: np.ndarray) -> None:
    """Tables of another number of images, of different places, or that count from the end."""
    graph = graph_for(model_for(table, 2))
    assert by_image(graph, 2).nodes == graph.nodes


def test_a_flat_tensor_that_is_returned_stays() -> None:
    """So does a graph for any number of images."""
    graph = graph_for(model_for(PLACES[None], outputs=("y", "v")))
    assert by_image(graph, 1).nodes == graph.nodes
    assert by_image(graph, None) is graph


class Turned(nn.Module):
    """A mean over places whose channels come last in memory, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_pool_of_turned_channels_is_read_from_a_file_of_one_image(tmp_path: Path) -> None:
    """The usual export of torch writes it so."""
    network = settled(Turned())
    file = exported(network, tmp_path / "turned.onnx", (3, 16, 16), dynamo=True, folded=True, free=False)
    assert any(node.op_type == "Gather" for node in onnx.load(file).graph.node)
    read, given = zoo.resolve(str(file), mean=[0.5] * 3, std=[0.5] * 3).model, images(3, (3, 16, 16))
    torch.testing.assert_close(read(given)["scores"], network(given), rtol=1e-4, atol=1e-5)
