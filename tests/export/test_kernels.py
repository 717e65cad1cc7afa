"""What engines make of a file is found by the names of its nodes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import student_of

from acq.export.engines import installed_engines
from acq.export.graph import onnx_model
from acq.export.kernels import integer_operators
from acq.network.names import name_of
from acq.quantization.integers import convert_to_integers

LAYERS = ("conv2d", "linear")


@pytest.mark.parametrize("name", ["resnet", "squeeze-excite", "dense", "hardswish"])
def test_operators_on_integers_are_named(name: str, tmp_path: Path) -> None:
    """All layers are, on both engines, and the counts are those of the engines' graphs."""
    student = student_of(name, "w8a8")
    convert_to_integers(student)
    model = onnx_model(student.eval(), named=True)
    onnx.save(model, tmp_path / "model.onnx")
    found = {name: kind.open(tmp_path / "model.onnx").kernels for name, kind in installed_engines().items()}
    operators = integer_operators(model, found)
    layers = [name_of(node) for node, _ in student.modules_in_order() if student.get_submodule(str(node.target)) in
              [layer for _, layer in student.layers()]]  # fmt: skip
    assert {operators[layer] for layer in layers} == {("onnxruntime", "openvino")}
    assert all(kernels.layers == kernels.integer == len(layers) for kernels in found.values())


def test_an_operator_in_floating_point_is_on_no_engine(tmp_path: Path) -> None:
    """A layer that is kept in floating point, beside layers on integers."""
    student = student_of("resnet", layers={"layer2.*": "float"})
    convert_to_integers(student)
    model = onnx_model(student.eval(), named=True)
    onnx.save(model, tmp_path / "model.onnx")
    found = {name: kind.open(tmp_path / "model.onnx").kernels for name, kind in installed_engines().items()}
    operators = integer_operators(model, found)
    kept = [node.name for node in student.plan.nodes if node.floating and node.operator.startswith("aten.conv2d")]
    assert kept
    assert {operators[name] for name in kept} == {()}


def test_files_have_names_of_nodes_only_where_they_are_asked_for() -> None:
    """They are of no use to an engine."""
    assert not any(node.name for node in onnx_model(student_of("resnet")).graph.node)
