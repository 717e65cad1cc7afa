from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from helpers import SIZE, conv, images, settled, student_from, student_of
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.export import check as checking
from acq.export.check import check
from acq.export.engines import ENGINES, REFERENCE
from acq.export.graph import onnx_model
from acq.export.openvino_engine import OpenVINO
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers
from acq.quantization.layers import QuantLayer
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student


@pytest.fixture
def student() -> Student:
    made = student_of("resnet", power_of_two_scales=True)
    convert_to_integers(made)
    return made.eval()


def written(student: Student, folder: Path) -> Path:
    onnx.save(onnx_model(student), folder / "model.onnx")
    return folder / "model.onnx"


def test_a_chain_has_the_students_logits(tmp_path: Path) -> None:
    """Without additions every layer runs on bytes."""
    student = student_of("relu6")
    convert_to_integers(student)
    engine = OpenVINO(written(student.eval(), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(*engine.run(images(9).numpy()), student(images(9)), rtol=1e-4, atol=1e-4)
    assert (engine.integer, engine.layers) == (3, 3)


def test_an_addition_takes_the_unrounded_output_of_a_layer(student: Student, tmp_path: Path) -> None:
    """This is all that the engine changes: without these roundings the student has the same logits."""
    (found,) = OpenVINO(written(student, tmp_path)).run(images(40).numpy())
    modules = dict(student.modules_in_order())
    for node, module in modules.items():
        added = all(user.op == "call_function" and "add" in str(user.target) for user in node.users)
        if isinstance(module, ActivationQuantizer) and isinstance(modules.get(node.args[0]), QuantLayer) and added:
            module.enabled = False
    with torch.no_grad():
        torch.testing.assert_close(found, student(images(40)), rtol=1e-4, atol=1e-4)


def test_other_content_is_refused(tmp_path: Path) -> None:
    """The message is one line, with the cause and not the place in OpenVINO's code."""
    (tmp_path / "model.onnx").write_bytes(b"")
    message = r"OpenVINO cannot run the file \(Unable to read the model.*\); uninstall the extra openvino"
    with pytest.raises(RequestError, match=message) as caught:
        OpenVINO(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


class Table(nn.Module):
    """Sequences that are added to a table, or multiplied by it, as boxes are that a detector computes.

    Args:
        join: The operator.
        shape: Of the table.
    """

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.join = join
        self.stem, self.head = conv(3, 8), nn.Linear(8, 5)
        self.register_buffer("table", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.join(x * 0.1, self.table).mean(1))


@pytest.mark.parametrize("join", [torch.mul, torch.add, torch.sub])
@pytest.mark.parametrize("shape", [(1, 256, 8), (256, 8), (1, 1, 8)])
def test_tables_are_stored_as_integers(
    join: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """OpenVINO opens no file that multiplies values by a constant, or adds one, which the file quantizes."""
    student = student_from(trace(settled(Table(join, shape)), SIZE), "w8a8", power_of_two_scales=True)
    convert_to_integers(student)
    engine = OpenVINO(written(student.eval(), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(*engine.run(images(9).numpy()), student(images(9)), rtol=1e-4, atol=1e-2)


def test_the_check_does_without_openvino(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional extra."""
    monkeypatch.setattr(checking, "installed_engines", lambda: {REFERENCE: ENGINES[REFERENCE]})
    assert check(written(student, tmp_path), student, images(4)).openvino is None
