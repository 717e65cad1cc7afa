"""Numbers that a file takes from a flat tensor by a table of places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import images, settled
from onnx import helper
from onnx_files import exported, model_of, on_onnxruntime
from torch import Tensor, nn

from acq import zoo
from acq.errors import RequestError
from acq.network.trace import trace
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
    np.testing.assert_array_equal(computed(by_image(graph_for(model), fixed, SIZE), given, fixed), wanted)


@pytest.mark.parametrize("table", [TABLES["turned"], np.stack([PLACES, PLACES[::-1] + 12]), np.array([[-1]])])
def test_other_tables_stay(table: np.ndarray) -> None:
    """Tables of another number of images, of different places, or that count from the end."""
    graph = graph_for(model_for(table, 2))
    assert by_image(graph, 2, SIZE).nodes == graph.nodes


def test_a_flat_tensor_that_is_returned_stays() -> None:
    """It has another reader, and the numbers are taken beside it."""
    graph = by_image(graph_for(model_for(PLACES[None], outputs=("y", "v"))), 1, SIZE)
    assert [node.kind for node in graph.nodes] == ["Reshape", "Reshape", "Gather", "Reshape"]


def counted(table: np.ndarray, step: int = 12) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Nodes that compute ``t`` from the number of images: a table of one image, moved by ``step`` for each one."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Squeeze", ["n"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["range"]),
        helper.make_node("Mul", ["range", "step"], ["moved"]),
        helper.make_node("Reshape", ["moved", "front"], ["shifts"]),
        helper.make_node("Add", ["shifts", "places"], ["t"]),
    ]
    front = [-1, *(1,) * table.ndim]
    constants = {"zero": np.array(0), "one": np.array(1), "step": np.array(step), "front": front, "places": table}
    return nodes, constants


def free_model(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    return model_of(nodes, ["n", *SIZE], {"a": np.array([-1]), **constants})


@pytest.mark.parametrize("name", TABLES)
def test_tables_may_follow_from_the_number_of_images(name: str) -> None:
    """A file for any number of images gives what the runtime gives, and its table is no part of the graph."""
    nodes, constants = counted(TABLES[name])
    nodes += [helper.make_node("Reshape", ["x", "a"], ["v"]), helper.make_node("Gather", ["v", "t"], ["y"])]
    model = free_model(nodes, constants)
    graph = by_image(graph_for(model), None, SIZE)
    assert [node.kind for node in graph.nodes] == ["Reshape", "Gather", "Reshape"]
    for count in (1, 4):
        given = images(count, SIZE)  # type: ignore[arg-type]
        wanted = on_onnxruntime(model, given)[0]
        np.testing.assert_array_equal(OnnxNetwork(graph)(given)["y"].numpy(), wanted)


@pytest.mark.parametrize("kind", ["Gather", "ScatterND"])
def test_a_table_of_all_images_in_order_changes_nothing(kind: str) -> None:
    """Values that replace those of every image are the result, and images that are all taken are the images."""
    nodes, constants = counted(np.array([0]) if kind == "ScatterND" else np.array(0), step=1)
    nodes += [helper.make_node("Neg", ["x"], ["z"])]
    nodes += [helper.make_node(kind, ["x", "t", "z"] if kind == "ScatterND" else ["z", "t"], ["y"])]
    graph = by_image(graph_for(free_model(nodes, constants)), None, SIZE)
    given = images(3, SIZE)  # type: ignore[arg-type]
    assert [node.kind for node in graph.nodes] == ["Neg", "Identity"]
    assert torch.equal(OnnxNetwork(graph)(given)["y"], -given)


@pytest.mark.parametrize(("table", "step"), [(PLACES[None], 11), (PLACES[None] + 1, 12), (PLACES, 0)])
def test_tables_across_images_stay(table: np.ndarray, step: int) -> None:
    """A table whose images share numbers is no table of single images."""
    nodes, constants = counted(table, step)
    nodes += [helper.make_node("Reshape", ["x", "a"], ["v"]), helper.make_node("Gather", ["v", "t"], ["y"])]
    graph = graph_for(free_model(nodes, constants))
    assert by_image(graph, None, SIZE).nodes == graph.nodes


def test_a_file_that_fits_one_number_of_images_is_refused_with_its_way_out() -> None:
    """The message is about the file and its node; a file has no forward."""
    nodes, constants = counted(np.array(0), step=-1)
    nodes += [helper.make_node("Gather", ["x", "t"], ["y"])]
    network = OnnxNetwork(by_image(graph_for(free_model(nodes, constants)), None, SIZE))
    with pytest.raises(RequestError, match=r"Range.*number of images; export the file for one image"):
        trace(network, (1, *SIZE))


class Turned(nn.Module):
    """A mean over places whose channels come last in memory, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Assigned(nn.Module):
    """A part of the channels to which others are added in place, as in GhostNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        y = torch.cat([x, x * 2], 1)[:, :8]
        y += x
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(("make", "kind"), [(Turned, "Gather"), (Assigned, "ScatterND")])
def test_tables_of_the_exporter_are_read(make: type[nn.Module], kind: str, free: bool, tmp_path: Path) -> None:
    """Exports of torch have them, for one image or any number; then they are traced for any."""
    network = settled(make())
    file = exported(network, tmp_path / "turned.onnx", (3, 16, 16), dynamo=True, folded=not free, free=free)
    assert any(node.op_type == kind for node in onnx.load(file).graph.node) or not free
    read, given = zoo.resolve(str(file), mean=[0.5] * 3, std=[0.5] * 3).model, images(3, (3, 16, 16))
    torch.testing.assert_close(read(given)["scores"], network(given), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace(read, (3, 16, 16))(given)[0], network(given), rtol=1e-4, atol=1e-5)
