from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from acq.files.onnx_session import session_of


def content() -> bytes:
    """A model of two identities, of which optimisation leaves one node at most."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("level", "count"), [("ORT_DISABLE_ALL", 2), ("ORT_ENABLE_BASIC", 1)])
def test_a_session_optimises_as_far_as_its_level(level: str, count: int, tmp_path: Path) -> None:
    """It computes the same at every level, and the optimised graph is written where it is asked for."""
    session = session_of(content(), level, threads=1, optimised=tmp_path / "optimised.onnx")
    (found,) = session.run(None, {"x": np.array([1, -2], np.float32)})
    assert found.tolist() == [-1, 2]
    assert len(onnx.load(tmp_path / "optimised.onnx").graph.node) == count


def test_what_the_runtime_refuses_is_raised_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing comes out on either stream, of native code neither."""
    with pytest.raises(Exception, match=r"ModelProto|model"):
        session_of(b"no model")
    assert capfd.readouterr() == ("", "")
