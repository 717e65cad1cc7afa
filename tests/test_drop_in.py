"""A file that was made from an ONNX file takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import SIZE, network
from onnx import TensorProto, helper
from onnx_files import exported
from small_runs import SETTINGS, config_, quick

import acq
from acq import zoo
from acq.api import evaluate
from acq.errors import RequestError
from acq.recipe import Request, quantize
from acq.runs.names import MODEL, TAIL
from acq.runs.session import Session


def script(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What a user's program does with a file: it feeds images as the file wants them, and reads the outputs by name."""
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    (entrance,) = session.get_inputs()
    shape = [4 if isinstance(size, str) else size for size in entrance.shape]
    images = np.random.default_rng(0).uniform(-1, 1, shape)
    kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}[entrance.type]
    images = (images * 127 + 128 if kind == np.uint8 else images).astype(kind)
    names = [value.name for value in session.get_outputs()]
    assert entrance.name == "pixels"
    return dict(zip(names, session.run(names, {entrance.name: images}), strict=True))


def as_it_is(model: onnx.ModelProto) -> None:
    pass


def with_names(model: onnx.ModelProto) -> None:
    """Metadata that a program reads, under keys of its own and of ``acq``."""
    helper.set_model_props(model, {"names": "cat,dog", "bits": "32", "tail": "yes", "resize": "[256,256]"})


def turned(model: onnx.ModelProto) -> None:
    """Images with their channels last."""
    _before(model, helper.make_node("Transpose", ["pixels"], ["inner"], perm=[0, 3, 1, 2]))
    sides = model.graph.input[0].type.tensor_type.shape.dim
    for side, size in zip(sides[1:], (*SIZE[1:], SIZE[0]), strict=True):
        side.dim_value = size


def of_bytes(model: onnx.ModelProto) -> None:
    """Bytes, normalised in the file."""
    _before(model, helper.make_node("Cast", ["pixels"], ["bytes"], to=TensorProto.FLOAT))
    model.graph.node.insert(1, helper.make_node("Mul", ["bytes", "scale"], ["inner"]))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 64]))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def in_half(model: onnx.ModelProto) -> None:
    """16-bit floats in and out."""
    _before(model, helper.make_node("Cast", ["pixels"], ["inner"], to=TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    _behind(model, helper.make_node("Cast", ["raw"], ["scores"], to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def with_places(model: onnx.ModelProto) -> None:
    """Post-processing that no network has: the places of all scores above a bound, and the best score."""
    _behind(model, helper.make_node("ReduceMax", ["raw", "one"], ["best"], keepdims=0))
    model.graph.node.append(helper.make_node("Greater", ["raw", "bound"], ["above"]))
    model.graph.node.append(helper.make_node("NonZero", ["above"], ["scores"]))
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    model.graph.initializer.append(helper.make_tensor("bound", TensorProto.FLOAT, [], [0.0]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.INT64, None))


def beside(model: onnx.ModelProto) -> None:
    """A class beside the scores, of a value that is no output."""
    model.graph.node.append(helper.make_node("Mul", ["scores", "two"], ["twice"]))
    model.graph.node.append(helper.make_node("ArgMax", ["twice"], ["class"], axis=1))
    model.graph.initializer.append(helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]))
    model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, None))


def half_inside(model: onnx.ModelProto) -> None:
    """A value in 16 bits between weights and outputs in 32."""
    _behind(model, helper.make_node("Cast", ["raw"], ["short"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["short"], ["scores"], to=TensorProto.FLOAT))


def all_half(model: onnx.ModelProto) -> None:
    """16-bit floats everywhere."""
    constants = [part.t for node in model.graph.node for part in node.attribute if part.name == "value"]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT:
            name, array = tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    del model.graph.value_info[:]
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def with_a_class(kind: int) -> Callable[[onnx.ModelProto], None]:
    """The class beside the scores, in a type of its own."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["place"], axis=1))
        model.graph.node.append(helper.make_node("Cast", ["place"], ["class"], to=kind))
        model.graph.output.append(helper.make_tensor_value_info("class", kind, None))

    return change


def _before(model: onnx.ModelProto, first: onnx.NodeProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["inner" if name == "pixels" else name for name in node.input]
    model.graph.node.insert(0, first)


def _behind(model: onnx.ModelProto, last: onnx.NodeProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "scores" else name for name in node.output]
    model.graph.node.append(last)


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], None], bool, tuple[str, ...]]] = {
    "free": (as_it_is, True, ()),
    "one image": (as_it_is, False, ()),
    "channels last": (turned, True, ()),
    "bytes": (of_bytes, True, ()),
    "metadata": (with_names, True, ()),
    "half": (in_half, True, ()),
    "cut": (with_places, True, ("raw",)),
    "cut beside": (beside, True, ("scores", "twice")),
    "cut in half": (half_inside, True, ("short",)),
    "all half": (all_half, True, ()),
    "class of 32 bits": (with_a_class(TensorProto.INT32), True, ("scores",)),
    "class of 8 bits": (with_a_class(TensorProto.UINT8), True, ("scores",)),
}


def file_of(name: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    change, free, outputs = CHANGES[name]
    file = exported(network("relu6"), folder / f"{name}.onnx", SIZE, dynamo=False, folded=False, free=free)
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)
    return file, outputs


def run_of(file: Path, outputs: tuple[str, ...], out: Path) -> zoo.Network:
    """A small run as the command line makes it."""
    normalised = {} if file.stem == "bytes" else {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    found = zoo.resolve(str(file), outputs=outputs, **normalised)
    assert found.form is not None
    config = config_(bits="w8a8", outputs=outputs[0] if len(found.form.outputs) > 1 else None)
    quantize(Request.of(found, config, {"model": str(file)}), Session(out))
    return found


@pytest.mark.filterwarnings("ignore:the file has weights of float16")
@pytest.mark.parametrize("name", CHANGES)
def test_one_script_runs_both_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a run has the names, shapes and types of the file that it was made from, and about its values."""
    quick(monkeypatch)
    file, outputs = file_of(name, tmp_path)
    run_of(file, outputs, tmp_path / "run")
    before, after = script(file), script(tmp_path / "run" / MODEL)
    assert list(before) == list(after)
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        if name != "cut" or key == "best":
            assert value.shape == after[key].shape
            assert np.abs(value - after[key]).max() < 0.3 * np.abs(value).max()


@pytest.mark.parametrize("name", ["metadata", "cut"])
def test_metadata_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind a cut. Where a key is one that ``acq`` writes or reads, it means what ``acq`` says."""
    quick(monkeypatch)
    file, outputs = file_of(name, tmp_path)
    model = onnx.load(file)
    with_names(model)
    onnx.save(model, file)
    run_of(file, outputs, tmp_path / "run")
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "run" / MODEL).metadata_props}
    assert (found["names"], found["bits"]) == ("cat,dog", "w8a8")
    assert ("tail" in found) == (name == "cut")
    assert "resize" not in found


def test_python_makes_a_file_that_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what ``resolve`` found. It knows its images, so they are not given again."""
    quick(monkeypatch)
    file, outputs = file_of("cut", tmp_path)
    found = zoo.resolve(str(file), outputs=outputs, mean=(0.5,) * 3, std=(0.25,) * 3)
    result = acq.quantize(found, bits="w8a8", out=tmp_path / "run", settings=SETTINGS, progress=False)
    assert result.exported is not None
    before, after = script(file), script(result.exported.path)
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    assert acq.inspect(found, bits="w8a8").nodes
    with pytest.raises(RequestError, match=r"cut\.onnx was found with its images; give input_size"):
        acq.quantize(found, input_size=SIZE, out=tmp_path / "other")


def test_what_cannot_be_put_back_refuses_a_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another file's part, which takes a value that the network does not return."""
    quick(monkeypatch)
    (file, outputs), (other, _) = file_of("cut", tmp_path), file_of("cut in half", tmp_path)
    normalised: Any = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    tail = zoo.resolve(str(other), outputs=("short",), **normalised).tail
    network = replace(zoo.resolve(str(file), outputs=outputs, **normalised), tail=tail)
    with pytest.raises(RequestError, match="does not run behind the student"):
        quantize(Request.of(network, config_(bits="w8a8"), {}), Session(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_file_that_goes_on_behind_the_network_is_made_again_from_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs the kept part, unchanged; without it, nothing is written."""
    from acq.api import export_run

    quick(monkeypatch)
    file, outputs = file_of("cut", tmp_path)
    run_of(file, outputs, tmp_path / "run")
    file.unlink()
    export_run(tmp_path / "run", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "run" / MODEL).read_bytes()
    with pytest.raises(RequestError, match="goes on behind the network's outputs; give the run folder"):
        evaluate(tmp_path / "again.onnx", tmp_path / "data.npz")
    (tmp_path / "run" / TAIL).write_bytes(b"other")
    with pytest.raises(RequestError, match="is not the one that the run began with"):
        export_run(tmp_path / "run", tmp_path / "third.onnx")
    assert not (tmp_path / "third.onnx").exists()
