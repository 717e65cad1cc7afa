from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from helpers import images, student_of

from acq.errors import RequestError
from acq.export import check as checking
from acq.export.check import check
from acq.export.graph import onnx_model
from acq.export.openvino_engine import OpenVINO
from acq.quantization.integers import convert_to_integers
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student


@pytest.fixture
def student() -> Student:
    made = student_of("resnet", reduce_range=True)
    convert_to_integers(made)
    return made.eval()


def written(student: Student, folder: Path) -> Path:
    onnx.save(onnx_model(student), folder / "model.onnx")
    return folder / "model.onnx"


def test_a_chain_gives_the_student_s_logits(tmp_path: Path) -> None:
    """Every layer on bytes, where nothing is added."""
    student = student_of("relu6")
    convert_to_integers(student)
    engine = OpenVINO(written(student.eval(), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(engine.run(images(9).numpy()), student(images(9)), rtol=1e-4, atol=1e-4)
    assert (engine.integer, engine.layers) == (3, 3)


def test_a_sum_takes_what_the_layer_before_it_gives_unrounded(student: Student, tmp_path: Path) -> None:
    """All that this engine changes: without these roundings the student gives the same logits."""
    found = OpenVINO(written(student, tmp_path)).run(images(40).numpy())
    layers = {name for name, _ in student.layers()}
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        added = all(user.op == "call_function" and "add" in str(user.target) for user in node.users)
        if isinstance(module, ActivationQuantizer) and str(node.args[0].target) in layers and added:
            module.enabled = False
    with torch.no_grad():
        torch.testing.assert_close(found, student(images(40)), rtol=1e-4, atol=1e-4)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    """In a line."""
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(RequestError, match=r"OpenVINO cannot run the file .*; without the extra openvino") as caught:
        OpenVINO(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_the_check_does_without_it(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of its own."""
    monkeypatch.setattr(checking.importlib.util, "find_spec", lambda _: None)
    assert check(written(student, tmp_path), student, images(4)).openvino is None
