"""Files for one number of images, taken for any: the forms in which graphs write the number."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_files import model_of, on_onnxruntime

from acq.zoo.onnx.batches import TRIAL
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import graph_of
from acq.zoo.onnx.network import OnnxNetwork
from acq.zoo.onnx.trial import tried

RNG = np.random.default_rng(0)
Line = tuple[str, str, dict[str, Any]]
# operator, inputs and attributes of each node; ``v1`` is the output of the first one, and so on
GRAPHS: dict[str, tuple[tuple[int, ...], list[Line], dict[str, Any]]] = {
    "the number in front": ((4, 6), [("Reshape", "x a", {})], {"a": [1, 24]}),
    "one size left open": ((4, 6), [("Reshape", "x a", {})], {"a": [1, -1]}),
    "channels in front": (
        (4, 3, 3),
        [
            ("Reshape", "x a", {}), ("Transpose", "v1", {"perm": [1, 0, 2]}), ("Reshape", "v2 b", {}),
            ("Gather", "v3 one", {}),
        ],
        {"a": [2, 2, 9], "b": [2, -1, 2, 3, 3], "one": np.array(1)},
    ),
    "a token in front": ((4, 6), [("Concat", "token x", {"axis": 1})], {"token": RNG.standard_normal((1, 1, 6))}),
    "rows of a table": (
        (4, 6),
        [("Reshape", "x a", {}), ("MatMul", "v1 w", {}), ("Reshape", "v2 b", {})],
        {"a": [4, 6], "b": [1, 4, 5], "w": RNG.standard_normal((6, 5))},
    ),
    "places first, then images": (
        (4, 6),
        [
            ("Transpose", "x", {"perm": [1, 0, 2]}), ("Reshape", "v1 a", {}), ("MatMul", "v2 w", {}),
            ("Reshape", "v3 b", {}), ("Transpose", "v4", {"perm": [1, 0, 2]}),
        ],
        {"a": [4, 6], "b": [4, 1, 5], "w": RNG.standard_normal((6, 5))},
    ),
    "heads": (
        (4, 6),
        [
            ("Transpose", "x", {"perm": [1, 0, 2]}), ("Reshape", "v1 a", {}), ("Transpose", "v2", {"perm": [1, 0, 2]}),
            ("Softmax", "v3", {"axis": 1}), ("Transpose", "v4", {"perm": [1, 0, 2]}), ("Reshape", "v5 b", {}),
            ("MatMul", "v6 w", {}), ("Reshape", "v7 c", {}), ("Transpose", "v8", {"perm": [1, 0, 2]}),
        ],
        {"a": [4, 2, 3], "b": [4, 6], "c": [4, 1, 6], "w": RNG.standard_normal((6, 6))},
    ),
    "an expansion": ((1, 6), [("Expand", "x a", {})], {"a": [1, 4, 6]}),
    "an expansion of windows": (
        (4, 6), [("Reshape", "x a", {}), ("Expand", "v1 b", {})], {"a": [4, 1, 6], "b": [4, 3, 6]}
    ),
    "an expansion of windows of heads": (
        (4, 6),
        [("Reshape", "x a", {}), ("Slice", "v1 zero one last", {}), ("Expand", "v2 b", {}), ("Reshape", "v3 c", {})],
        {"a": [2, 2, 6], "zero": [0], "one": [1], "last": [2], "b": [2, 2, 6], "c": [1, 4, 6]},
    ),
    "an expansion that stays": ((4, 1), [("Reshape", "x a", {}), ("Expand", "v1 b", {})], {"a": [4, 1], "b": [1, 5]}),
}  # fmt: skip


def model_for(name: str) -> onnx.ModelProto:
    shape, lines, constants = GRAPHS[name]
    nodes = [
        helper.make_node(kind, inputs.split(), [f"v{place}" if place < len(lines) else "y"], **attributes)
        for place, (kind, inputs, attributes) in enumerate(lines, 1)
    ]
    return model_of(nodes, [1, *shape], constants)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_of_one_image_gives_each_image_of_a_batch_its_values(name: str) -> None:
    """Three images at once have the values that the runtime gives for one after the other."""
    model, shape = model_for(name), GRAPHS[name][0]
    graph = folded(graph_of(model, "x", ("y",)))
    changes = tried(graph, torch.empty(TRIAL, *shape, device="meta"), 1)
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = OnnxNetwork(graph, changes=changes)(images)["y"]
    wanted = np.concatenate([on_onnxruntime(model, image[None])[0] for image in images])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [([4, 1, 6], [4, 5, 6]), ([8, 1, 3], [8, 5, 3]), ([8, 3, 1], [8, 3, 2]), ([8, 3, 1], [1, 1, 2])],
)
def test_a_file_of_four_images_keeps_others_apart(first: list[int], second: list[int]) -> None:
    """Its number need not be one, and each image may have several windows."""
    nodes = [helper.make_node("Reshape", ["x", "a"], ["v"]), helper.make_node("Expand", ["v", "b"], ["y"])]
    model = model_of(nodes, [4, 2, 3], {"a": first, "b": second})
    graph = folded(graph_of(model, "x", ("y",)))
    changes = tried(graph, torch.empty(TRIAL, 2, 3, device="meta"), 4)
    images = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    found = OnnxNetwork(graph, fixed=4, changes=changes)(images)["y"]
    wanted = np.concatenate([on_onnxruntime(model, part)[0] for part in images.split(4)])
    np.testing.assert_allclose(found.numpy(), wanted)
