from __future__ import annotations

from math import comb
from pathlib import Path

import onnx
import pytest
import torch
from helpers import images, student_of
from onnx import numpy_helper
from openvino import CompiledModel
from torch import Tensor

from acq.export.check import Match, Parity, chance_of, check
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
        assert not found.agrees(match)
    assert found.self_agreement == 100  # noise of 1e-5 changes no answer, so it excuses nothing


def test_a_student_that_float_rounding_changes_lowers_the_bar(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers turn with the last digits of an image, as those of a deep transformer do; the file cannot follow."""
    onnx.save(onnx_model(student), tmp_path / "model.onnx")
    steady = student.returned

    def unsteady(x: Tensor) -> tuple[Tensor, ...]:
        (logits,) = steady(x)
        turned = (x.double().sum((1, 2, 3)) * 1e6).long() % 8 == 0
        return (torch.where(turned[:, None], -logits, logits),)

    monkeypatch.setattr(student, "returned", unsteady)
    found = check(tmp_path / "model.onnx", student, images(200))
    assert found.self_agreement is not None
    assert 65 < found.self_agreement < 90  # two draws of one in eight differ on 22 %
    assert found.optimised.agreement < 95
    assert found.agrees(found.optimised)
    assert found.least == pytest.approx(found.self_agreement - 1)


@pytest.mark.parametrize(
    ("kind", "self_agreement", "least", "bar"),
    [("class", None, 99, "99 %"), ("class", 90, 89, "89 %"), ("class", 20, 50, "50 %"), ("values", None, 99.9, "0.999"),
     ("values", 99.5, 99.4, "0.994")],
)  # fmt: skip
def test_the_bar_is_lower_by_what_the_student_misses(
    kind: str, self_agreement: float | None, least: float, bar: str
) -> None:
    """And never below one half."""
    found = Parity(1000, kind, Match(100, 100, 0), {}, {}, self_agreement)
    assert found.least == pytest.approx(least)
    assert found.bar == bar
    assert found.agrees(Match(least + 0.05, 0, 1))
    assert not found.agrees(Match(least - 6, 0, 1))


def test_an_engine_that_fails_at_run_time_is_listed(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's comparison stays."""

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(CompiledModel, "__call__", fail)
    onnx.save(onnx_model(student), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(8))
    assert set(found.engines) == {"onnxruntime"}
    assert "OpenVINO fails while it runs the file (no memory)" in found.failures["openvino"]


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
