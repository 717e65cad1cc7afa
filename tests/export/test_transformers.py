"""Networks with attention or layer norms mean the same in a file, and their layers run on integers."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import SIZE, images, student_from
from transformers import TRANSFORMERS, transformer

from acq.core.file_form import FileForm
from acq.export.check import check
from acq.export.form import in_form
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student


def integer_student(name: str, bits: str) -> Student:
    student = student_from(trace(transformer(name), SIZE), bits, "layers")
    convert_to_integers(student)
    return student.eval()


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_all_layers_run_on_integers_on_both_engines(name: str, bits: str, tmp_path: Path) -> None:
    """Answers are the student's. Floats between grids may differ by a rounding, and then by a level."""
    student = integer_student(name, bits)
    model = onnx_model(student)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(64, SIZE, 5))
    assert found.openvino is not None
    layers = len(list(student.layers()))
    assert (found.integer, found.layers) == (found.openvino.integer, found.openvino.layers) == (layers, layers)
    for match in (found.plain, found.optimised, found.openvino.match):
        assert match.agreement >= 98
        assert match.difference < 0.05


@pytest.mark.parametrize("name", ["class token", "convnext", "shifted windows"])
def test_layers_run_on_integers_in_a_file_for_one_image(name: str, tmp_path: Path) -> None:
    """Then the engine knows all shapes, and joins products with sums where it can."""
    student = integer_student(name, "w8a8")
    model = onnx_model(student)
    in_form(model, FileForm("x", "NCHW", "float32", 1, {"y": "float32"}))
    onnx.save(model, tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(4, SIZE, 5))
    layers = len(list(student.layers()))
    assert (found.integer, found.layers) == (layers, layers)
