from __future__ import annotations

from math import comb
from pathlib import Path

import onnx
import pytest
from helpers import images, student_of
from onnx import numpy_helper

from acq.export.check import chance_of, check
from acq.export.graph import onnx_model
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student


@pytest.fixture
def student() -> Student:
    made = student_of("relu6")
    convert_to_integers(made)
    return made.eval()


def test_layers_are_counted_by_kernel(student: Student, tmp_path: Path) -> None:
    """Convolutions and the linear layer, whose output is not quantized, run on integer kernels."""
    onnx.save(onnx_model(student), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(33))
    assert (found.images, found.integer, found.layers) == (33, 3, 3)


def test_a_wrong_file_is_found(student: Student, tmp_path: Path) -> None:
    """One wrong bias shows in every figure."""
    model = onnx_model(student)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.fc.bias")
    wrong = numpy_helper.to_array(bias).copy()
    wrong[2] -= 10**6
    bias.CopyFrom(numpy_helper.from_array(wrong, bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(20))
    for match in (found.plain, found.optimised):
        assert match.agreement < 100
        assert match.equal == 0
        assert match.difference > 1


def test_invalid_onnx_is_refused(student: Student, tmp_path: Path) -> None:
    """The checker finds it before an engine opens it."""
    model = onnx_model(student)
    model.graph.node[3].op_type = "Nonsense"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(onnx.checker.ValidationError):
        check(tmp_path / "model.onnx", student, images(2))


def test_the_chance_is_a_binomial_tail() -> None:
    """Compared with a count of all outcomes."""
    exact = sum(comb(12, k) * 0.2**k * 0.8 ** (12 - k) for k in range(5, 13))
    assert chance_of(5, 12, 0.2) == pytest.approx(exact)
    assert chance_of(0, 12, 0.2) == 1
