from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import images, student_of
from onnx import TensorProto, helper

from acq.core.file_form import FileForm
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.benchmark import benchmark
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.export.onnx_file import export_onnx
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student, quantizers_off

SCORES = {"scores": "float32"}
FREE = FileForm("pixels", "NCHW", "float32", None, SCORES)
CUT = FileForm("pixels", "NCHW", "float32", None, SCORES, tail="0" * 64)


@pytest.fixture(scope="module")
def student() -> Student:
    made = student_of("resnet")
    convert_to_integers(made)
    made.preprocessing = Preprocessing((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return made.eval()


def test_the_file_in_floating_point_has_no_quantizers(student: Student, tmp_path: Path) -> None:
    """Its weights are the quantized ones as floats, and nothing in it is an integer or quantized."""
    model = onnx_model(student, floating=True)
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear", "Cast"}
    assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    onnx.save(model, tmp_path / "float.onnx")
    x = images(6)
    for module in student.modules():
        assert getattr(module, "enabled", True)
    with torch.no_grad(), quantizers_off(student):
        for _, layer in student.layers():
            layer.weight_quantizer.enabled = True
        wanted = student(x)
    torch.testing.assert_close(Engine(tmp_path / "float.onnx")(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("raw", [False, True])
def test_every_pair_is_measured(student: Student, tmp_path: Path, raw: bool) -> None:
    """There is one latency per threads and batch; sizes are the files', ratios those of the figures beside them."""
    made = export_onnx(student, tmp_path / "model.onnx", images(8), raw_images=raw)
    found = benchmark(student, made.path, threads=(1, 2), batches=(1, 3), seconds=0.0)
    assert [(row.threads, row.batch) for row in found.latencies] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for row in found.latencies:
        assert row.float_ms > 0
        assert row.latency_ratio == pytest.approx(row.integer_ms / row.float_ms)
    assert found.integer_bytes == made.bytes
    assert found.size_ratio == made.bytes / found.float_bytes
    assert 20 < found.integer_memory_mb < 500
    assert 20 < found.float_memory_mb < 500


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What ONNX Runtime gets, one entry per call."""
    found: list[np.ndarray] = []
    run = onnxruntime.InferenceSession.run

    def recorded(session: Any, names: Any, inputs: dict[str, np.ndarray]) -> Any:
        found.extend(inputs.values())
        return run(session, names, inputs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", recorded)
    return found


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        (FileForm("pixels", "NCHW", "float32", 4, SCORES), [(4, 3, 16, 16)]),
        (FileForm("pixels", "NCHW", "float32", 1, SCORES), [(1, 3, 16, 16)]),
        (FileForm("pixels", "NCHW", "float16", None, SCORES), [(1, 3, 16, 16), (3, 3, 16, 16)]),
        (FileForm("pixels", "NHWC", "uint8", 2, SCORES), [(2, 16, 16, 3)]),
    ],
    ids=["four", "one", "half", "bytes"],
)
def test_both_files_get_what_the_file_takes(
    student: Student, tmp_path: Path, fed: list[np.ndarray], form: FileForm, shapes: list[tuple[int, ...]]
) -> None:
    """Every call has the file's type and layout; a fixed batch is the only one that is measured."""
    made = export_onnx(student, tmp_path / "model.onnx", images(8), form=form)
    fed.clear()
    found = benchmark(student, made.path, form=form, threads=(1,), batches=(1, 3), seconds=0.0)
    assert [row.batch for row in found.latencies] == [shape[0] for shape in shapes]
    assert {array.dtype.name for array in fed} == {form.kind}
    calls = [array.shape for array in fed]
    assert set(calls) == set(shapes)
    assert all(calls.count(shape) == len(calls) / len(shapes) for shape in shapes)
    assert (found.fixed_batch, found.without_tail) == (form.batch, False)
    assert found.integer_bytes == made.bytes


def test_what_is_behind_the_outputs_is_not_measured(student: Student, tmp_path: Path) -> None:
    """Both files end at the network's outputs, whatever was cut off."""
    behind = onnx.helper.make_graph(
        [helper.make_node("NonZero", ["scores"], ["places"])],
        "rest",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("places", TensorProto.INT64, None)],
    )
    rest = helper.make_model(behind, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = export_onnx(student, tmp_path / "cut.onnx", images(8), form=CUT, tail=rest.SerializeToString())
    whole = export_onnx(student, tmp_path / "whole.onnx", images(8), form=FREE)
    cut, plain = (
        benchmark(student, each.path, form=form, threads=(1,), batches=(1,), seconds=0.0)
        for each, form in ((made, CUT), (whole, FREE))
    )
    assert (cut.without_tail, plain.without_tail) == (True, False)
    assert (cut.float_bytes, cut.integer_bytes) == (plain.float_bytes, plain.integer_bytes)
    assert cut.integer_bytes < made.bytes
    for unknown in (None, FREE):
        with pytest.raises(RequestError, match="behind outputs that this run does not know"):
            benchmark(student, made.path, form=unknown, seconds=0.0)


def test_a_file_with_another_input_is_refused(student: Student, tmp_path: Path) -> None:
    """Two files that take different batches cannot be compared."""
    form = FileForm("pixels", "NCHW", "float32", 4, SCORES)
    made = export_onnx(student, tmp_path / "model.onnx", images(8), form=form)
    for other in (None, FREE):
        with pytest.raises(RequestError, match="takes another input than this run's network"):
            benchmark(student, made.path, form=other, seconds=0.0)


def test_a_process_that_fails_is_one_line(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export_onnx(student, tmp_path / "model.onnx", images(8))
    monkeypatch.setattr("acq.export.benchmark._LOAD_AND_RUN", "raise SystemExit('out of memory')")
    with pytest.raises(RequestError, match=r"cannot be measured \(out of memory\); export it again"):
        benchmark(student, made.path, seconds=0.0)


def test_a_damaged_file_is_refused(student: Student, tmp_path: Path) -> None:
    """Nothing is measured before."""
    (tmp_path / "model.onnx").write_bytes(b"\0damaged")
    with pytest.raises(RequestError, match="valid ONNX"):
        benchmark(student, tmp_path / "model.onnx", seconds=0.0)
