from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import images, student_of
from onnx import TensorProto, helper

from acq.core.file_form import FileForm
from acq.errors import RequestError
from acq.export.form import in_form
from acq.export.graph import onnx_model
from acq.export.tail import joined, require_equal

FORM = FileForm("pixels", "NCHW", "float32", None, {"scores": "float32"})


def head() -> onnx.ModelProto:
    model = onnx_model(student_of("resnet").eval())
    in_form(model, FORM)
    return model


def tail(opset: int, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """What takes the scores and gives ``y``; its constants have names that a student's file may have too."""
    inputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [helper.make_tensor("v1", TensorProto.FLOAT, [], [2.0])]
    graph = helper.make_graph(list(nodes), "rest", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), ["v2" if kind == "Mul" else "y"], **attributes)


@pytest.mark.parametrize("opset", [9, 13, 20, 21, 23])
def test_a_part_of_any_opset_is_put_behind(opset: int, tmp_path: Path) -> None:
    """One file has one version: the older of both parts is lifted."""
    model, rest = head(), tail(opset, node("Mul", "scores v1"), node("Softmax", "v2", axis=1))
    whole = joined(model, rest)
    onnx.save(whole, tmp_path / "a.onnx")
    assert [value.name for value in whole.graph.output] == ["y"]
    require_equal(tmp_path / "a.onnx", model.SerializeToString(), rest, images(3).numpy())


def test_names_of_graphs_inside_a_part_are_its_own(tmp_path: Path) -> None:
    """A loop's values may have names that the student's have too."""
    true = helper.make_node("Identity", ["going"], ["v3"])
    step = helper.make_node("Add", ["v2", "v1"], ["v4"])
    values = [
        helper.make_tensor_value_info(name, kind, None if kind == TensorProto.FLOAT else [])
        for name, kind in (("count", TensorProto.INT64), ("going", TensorProto.BOOL), ("v2", 1), ("v3", 9), ("v4", 1))
    ]
    body = helper.make_graph([true, step], "body", values[:3], values[3:])
    loop = helper.make_node("Loop", ["times", "", "scores"], ["y"], body=body)
    model, rest = head(), tail(21, loop)
    rest.graph.initializer.append(helper.make_tensor("times", TensorProto.INT64, [], [3]))
    onnx.save(joined(model, rest), tmp_path / "a.onnx")
    require_equal(tmp_path / "a.onnx", model.SerializeToString(), rest, images(3).numpy())


def test_other_values_behind_the_student_are_found(tmp_path: Path) -> None:
    """Such as those of a file with another constant."""
    model, rest = head(), tail(21, node("Mul", "scores v1"), node("Softmax", "v2", axis=1))
    other = tail(21, node("Mul", "scores v1"), node("Softmax", "v2", axis=1))
    other.graph.initializer[0].CopyFrom(helper.make_tensor("v1", TensorProto.FLOAT, [], [0.1]))
    onnx.save(joined(model, other), tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="gives other values behind the student"):
        require_equal(tmp_path / "a.onnx", model.SerializeToString(), rest, images(3).numpy())
    with pytest.raises(RequestError, match="does not run behind the student"):
        require_equal(tmp_path / "a.onnx", model.SerializeToString(), rest, np.zeros((1, 2), np.float32))
