from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from helpers import SIZE, images, student_of

from acq.core.file_form import FileForm, Kind, Layout
from acq.core.values import Preprocessing
from acq.export.check import check
from acq.export.engine import Engine
from acq.export.form import in_form, rename
from acq.export.graph import onnx_model
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student


def student() -> Student:
    made = student_of("resnet")
    made.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    convert_to_integers(made)
    return made.eval()


def written(made: Student, folder: Path, form: FileForm) -> Path:
    model = onnx_model(made)
    in_form(model, form)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "a.onnx")
    return folder / "a.onnx"


def form(images: str = "pixels", layout: Layout = "NCHW", kind: Kind = "float32", batch: int | None = None) -> FileForm:
    return FileForm(images, layout, kind, batch, {"scores": "float32"})


def test_a_file_of_two_images_is_evaluated_on_any_number(tmp_path: Path) -> None:
    """The engine and the check feed it whole batches; screening takes the fixed number."""
    made = student()
    file = written(made, tmp_path, form(batch=2))
    assert onnxruntime.InferenceSession(file.read_bytes()).get_inputs()[0].shape[0] == 2
    few = images(5)
    with torch.no_grad():
        wanted = made.logits(few)
    torch.testing.assert_close(Engine(file)(few), wanted, rtol=1e-4, atol=1e-4)
    assert check(file, made, few).plain.agreement == 100
    assert check(file, made, few[:1]).images == 2


def test_layout_and_type_of_the_input_are_those_of_the_form(tmp_path: Path) -> None:
    made = student()
    file = written(made, tmp_path, form(layout="NHWC", kind="float16"))
    (entrance,) = onnxruntime.InferenceSession(file.read_bytes()).get_inputs()
    assert (entrance.type, entrance.shape[1:]) == ("tensor(float16)", [16, 16, 3])
    few = images(4).half().float()
    with torch.no_grad():
        wanted = made.logits(few)
    torch.testing.assert_close(Engine(file)(few), wanted, rtol=1e-4, atol=1e-4)
    assert Engine(file).input_for(few).dtype == np.float16


def test_names_that_the_student_uses_itself_give_way(tmp_path: Path) -> None:
    """A file may call its output as the student's file calls a value inside."""
    made = student()
    inner = onnx_model(made).graph.node[0].output[0]
    taken = FileForm(inner, "NCHW", "float32", None, {"v3": "float32"})
    assert Engine(written(made, tmp_path, taken))(images(2)).shape == (2, 5)


def test_renaming_reaches_every_place() -> None:
    graph = onnx_model(student()).graph
    old = graph.output[0].name
    rename(graph, {old: "scores"}, reserved=["scores"])
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    assert graph.output[0].name == "scores"
    assert "scores" in names
    assert old not in names
