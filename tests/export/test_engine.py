from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import SIZE, images, student_of
from onnx import TensorProto, helper

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.export.engine import Engine
from acq.export.graph import onnx_model


def foreign() -> onnx.ModelProto:
    """A valid file of another tool."""
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message says how to write one."""
    with pytest.raises(RequestError, match=r"there is no file .*acq export RUN"):
        Engine(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00\x01not a model", b"<html>"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message is one line."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"give a file .* acq export") as caught:
        Engine(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", "0.5"),
        ("std", "0.2,0.2,0.2,0.2"),
        ("input_size", "3,16"),
        ("counted", "many"),
        ("resize", "15"),
        ("resize", "-16"),
        ("resize", "18.5"),
        ("interpolation", "nearest"),
        ("interpolation", ""),
    ],
)
def test_wrong_metadata_are_refused(key: str, value: str, tmp_path: Path) -> None:
    """They are checked before they are used."""
    student = student_of("residual").eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3, Framing(18))
    model = onnx_model(student)
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RequestError, match="was not written by acq export"):
        Engine(tmp_path / "model.onnx")


@pytest.mark.parametrize("framing", [None, Framing(16), Framing(18, "bicubic")])
def test_a_file_says_how_pictures_are_framed(framing: Framing | None, tmp_path: Path) -> None:
    """As the student does. Files from before framing say nothing of it."""
    student = student_of("residual").eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3, framing)
    model = onnx_model(student)
    keys = {entry.key for entry in model.metadata_props}
    assert keys >= {"resize", "interpolation"} if framing else not keys & {"resize", "interpolation"}
    onnx.save(model, tmp_path / "model.onnx")
    assert Engine(tmp_path / "model.onnx").preprocessing == student.preprocessing


def test_a_resize_without_interpolation_is_refused(tmp_path: Path) -> None:
    """One entry of two is no framing."""
    student = student_of("residual").eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3, Framing(18))
    model = onnx_model(student)
    model.metadata_props.remove(next(entry for entry in model.metadata_props if entry.key == "interpolation"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RequestError, match="was not written by acq export"):
        Engine(tmp_path / "model.onnx")


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    """The metadata may promise more logits than there are."""
    model = onnx_model(student_of("residual").eval())
    counted = next(entry for entry in model.metadata_props if entry.key == "counted")
    counted.value = counted.value.replace("[5]", "[7]")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RequestError, match=r"returns \(2, 5\) for 2 images of 7 logits; export it again"):
        Engine(tmp_path / "model.onnx")(images(2))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """It does not say what its images are."""
    onnx.save(foreign(), tmp_path / "model.onnx")
    with pytest.raises(RequestError, match="was not written by acq export"):
        Engine(tmp_path / "model.onnx")
