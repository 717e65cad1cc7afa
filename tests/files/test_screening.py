from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import NETWORKS, SIZE, student_of
from onnx import TensorProto, helper, numpy_helper

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export import engine
from acq.export.graph import onnx_model
from acq.files.screening import ONNX_BYTES, screened

Edit = Callable[[onnx.ModelProto], None]
NOT_EXPORTED = {"unknown operator"}


def exported(name: str, raw: bool = False, floating: bool = False) -> onnx.ModelProto:
    student = student_of(name).eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
    return onnx_model(student, raw_images=raw, floating=floating)


@pytest.fixture(scope="module")
def content() -> bytes:
    return exported("residual").SerializeToString()


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - NOT_EXPORTED))
def test_exported_files_pass(name: str, tmp_path: Path) -> None:
    """Every network, with and without raw images and in floating point; metadata is kept."""
    for raw, floating in ((False, False), (True, False), (False, True)):
        path = tmp_path / "model.onnx"
        onnx.save(exported(name, raw, floating), path)
        found = screened(path)
        assert found.content == path.read_bytes()
        assert found.facts["outputs"] == '["logits"]'


def constant(name: str, value: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(value, name)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def declaring(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [10**6, 10**6, 10**6]


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, -len(model.graph.initializer[0].raw_data)]


def double(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("more", np.zeros(1)))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims[:] = [10**12]


def nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["images"], ["x"], then_branch=inner, else_branch=inner))


def foreign(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f")


def grown(model: onnx.ModelProto) -> None:
    """A node that repeats the logits 10^9 times and whose result is unused."""
    model.graph.initializer.append(constant("times", np.array([10**9, 1])))
    model.graph.node.append(helper.make_node("Tile", ["logits", "times"], ["grown"]))


def unknown(model: onnx.ModelProto) -> None:
    """A node whose result has a size that depends on values."""
    model.graph.node.append(helper.make_node("NonZero", ["logits"], ["places"]))


def no_text(model: onnx.ModelProto) -> None:
    """A name that is not UTF-8."""
    model.ParseFromString(model.SerializeToString().replace(b"deployable", b"deploy\xefble"))


def two(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def unsized(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def broken(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (external, "keeps constants in other files"),
        (declaring, "has a constant that declares .* TiB"),
        (negative, "has a constant that declares"),
        (double, "has a constant of type"),
        (sparse, "has sparse constants"),
        (nested, "has graphs or tensors inside its nodes"),
        (foreign, "has operators outside the ONNX standard"),
        (function, "has functions"),
        (grown, "has a value 'grown' of more than 536,870,912 numbers"),
        (unknown, "has a value 'places' of unknown size"),
        (no_text, "has text that is not UTF-8"),
        (two, "has several inputs"),
        (twice, "has several inputs, or outputs of one name"),
        (unsized, "takes images of unknown size"),
        (broken, "is no valid ONNX file"),
    ],
)
def test_files_that_export_does_not_write_never_reach_an_engine(
    edit: Edit, words: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong and what to give instead."""
    model = onnx.load_model_from_string(content)
    edit(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("the engine opened it"))
    with pytest.raises(RequestError, match=words) as caught:
        engine.Engine(path)
    assert str(caught.value).endswith("; give a file from acq export")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Its size is checked before it is read."""
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(ONNX_BYTES + 1)
    with pytest.raises(RequestError, match=r"more than the limit of 2 GiB; give a file from acq export"):
        screened(tmp_path / "model.onnx")
