from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from helpers import images, student_of
from onnx import TensorProto

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.benchmark import benchmark
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.export.onnx_file import export_onnx
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student, quantizers_off


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


def test_a_damaged_file_is_refused(student: Student, tmp_path: Path) -> None:
    """Nothing is measured before."""
    (tmp_path / "model.onnx").write_bytes(b"\0damaged")
    with pytest.raises(RequestError, match="valid ONNX"):
        benchmark(student, tmp_path / "model.onnx", seconds=0.0)
