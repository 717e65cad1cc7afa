"""Arithmetic of sizes becomes constants that mean the same for every number of images."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from acq.export.order import needed_in_order
from acq.export.sizes import fold_sizes

Nodes = list[onnx.NodeProto]
CONSTANTS = {
    "zero": np.array([0]), "one": np.array([1]), "four": np.array([4]), "last": np.array(3), "start": np.array(0),
    "step": np.array(1), "size": np.array([2, 6]),
}  # fmt: skip
SHAPE = helper.make_node("Shape", ["x"], ["shape"])
FIRST = helper.make_node("Shape", ["x"], ["first"], start=0, end=1)
GRAPHS: dict[str, Nodes] = {
    "reshape": [
        FIRST,
        helper.make_node("Reshape", ["first", "one_"], ["again"]),
        helper.make_node("Concat", ["again", "size", "four"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ],
    "images as channels": [
        FIRST,
        helper.make_node("Mul", ["first", "four"], ["many"]),
        helper.make_node("Concat", ["many", "size"], ["sizes"], axis=0),
        helper.make_node("Expand", ["value", "sizes"], ["y"]),
    ],
    "range": [
        SHAPE,
        helper.make_node("Gather", ["shape", "last"], ["width"]),
        helper.make_node("Range", ["start", "width", "step"], ["places"]),
        helper.make_node("Gather", ["x", "places"], ["y"], axis=3),
    ],
}


def model_of(nodes: Nodes) -> onnx.ModelProto:
    ones = {"value": (1, 1, 1), "value3": (1, 1, 1, 1), "row": (1, 3, 4, 4)}
    constants = {**CONSTANTS, "one_": np.array([-1])}
    constants |= {name: np.ones(shape, np.float32) for name, shape in ones.items()}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])
    y = onnx.ValueInfoProto(name="y")
    graph = helper.make_graph(nodes, "toy", [x], [y], initializer=initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def images(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)}


def run(model: onnx.ModelProto, count: int) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, images(count))
    return np.asarray(found)


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_folded_model_means_the_same_and_its_shapes_are_known(kind: str) -> None:
    """For one and for five images; the checker infers the output's shape where the input's is fixed."""
    model = model_of(GRAPHS[kind])
    expected = [run(model, count) for count in (1, 5)]
    fold_sizes(model, images(2), images(3))
    for count, wanted in zip((1, 5), expected, strict=True):
        np.testing.assert_array_equal(run(model, count), wanted)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0].type.tensor_type.shape.dim
    assert tuple(side.dim_value for side in inferred) == expected[1].shape


TILED = helper.make_node("Tile", ["value", "times"], ["y"])
OF_ANOTHER: dict[str, Nodes] = {
    "a constant is repeated": [
        helper.make_node("Shape", ["late"], ["first"], start=0, end=1),
        helper.make_node("Concat", ["first", "one", "four"], ["times"], axis=0),
        TILED,
    ],
    "by a number": [
        helper.make_node("Shape", ["late"], ["shape"]),
        helper.make_node("Gather", ["shape", "start"], ["number"]),
        helper.make_node("Mul", ["number", "step"], ["multiple"]),
        helper.make_node("Unsqueeze", ["multiple", "zero"], ["first"]),
        helper.make_node("Concat", ["first", "one", "four"], ["times"], axis=0),
        TILED,
    ],
    "by a size with a rest": [
        helper.make_node("Concat", ["late", "row"], ["longer"], axis=0),
        helper.make_node("Shape", ["longer"], ["shape"]),
        helper.make_node("Expand", ["value3", "shape"], ["y"]),
    ],
    "by the count of all values": [
        helper.make_node("Size", ["late"], ["number"]),
        helper.make_node("Unsqueeze", ["number", "zero"], ["first"]),
        helper.make_node("Concat", ["first", "one", "four"], ["times"], axis=0),
        TILED,
    ],
}


@pytest.mark.parametrize("kind", OF_ANOTHER)
def test_the_number_of_images_is_asked_of_the_images_alone(kind: str) -> None:
    """What another value depends on may read the result, so that each would wait for the other."""
    model = model_of([helper.make_node("Abs", ["x"], ["late"]), *OF_ANOTHER[kind]])
    expected = [run(model, count) for count in (1, 5)]
    fold_sizes(model, images(2), images(3))
    for count, wanted in zip((1, 5), expected, strict=True):
        np.testing.assert_array_equal(run(model, count), wanted)
    nodes, _ = needed_in_order(model.graph.node, ["y"])
    assert {name for node in nodes if node.op_type in ("Shape", "Size") for name in node.input} == {"x"}


def test_values_that_depend_on_data_are_left_alone() -> None:
    """An index may be the same for two inputs by chance."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
        helper.make_node("ArgMax", ["x"], ["place"], axis=3, keepdims=0),
        helper.make_node("Add", ["place", "shape"], ["y"]),
    ]
    model = model_of(nodes)
    expected = run(model, 4)
    zeros = [{"x": np.zeros((count, 3, 4, 4), np.float32)} for count in (2, 3)]
    fold_sizes(model, *zeros)
    np.testing.assert_array_equal(run(model, 4), expected)
