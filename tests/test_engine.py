from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from acq.errors import RequestError
from acq.export.engine import Engine


def stranger() -> onnx.ModelProto:
    """A valid file of somebody else."""
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """With what would write one."""
    with pytest.raises(RequestError, match=r"there is no file .*acq export RUN"):
        Engine(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00\x01not a model", b"<html>"])
def test_what_is_no_model_is_told(tmp_path: Path, content: bytes) -> None:
    """In a line."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="give a file of acq export") as caught:
        Engine(path)
    assert "\n" not in str(caught.value)


def test_a_stranger_s_file_is_told(tmp_path: Path) -> None:
    """It does not say what its images are."""
    onnx.save(stranger(), tmp_path / "model.onnx")
    with pytest.raises(RequestError, match="was not written by acq export"):
        Engine(tmp_path / "model.onnx")
