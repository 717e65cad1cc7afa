"""An ONNX file as MODEL, in every command that takes one."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import NETWORK, acq, quantize, refusal
from helpers import SIZE
from onnx import helper
from onnx_files import exported

from acq import api
from acq.core.values import Preprocessing
from acq.zoo import resolve

FLOAT = onnx.TensorProto.FLOAT
DATA = ["--data", "data.npz"]
KNOWN = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]


@pytest.fixture
def file(folder: Path) -> str:
    module = resolve(NETWORK[0], input_size=SIZE).model
    exported(module, folder / "own.onnx", SIZE, dynamo=False, folded=False, free=True)
    return "own.onnx"


def test_a_file_is_evaluated_like_its_network(file: str) -> None:
    found = acq("evaluate", file, *KNOWN, *DATA, "--json").json()
    assert (
        found["top1"] == acq("evaluate", NETWORK[0], *KNOWN, "--input-size", "3,16,16", *DATA, "--json").json()["top1"]
    )


def test_python_may_give_another_normalisation(file: str) -> None:
    """To evaluate a network by name, as the command line does."""
    known = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    other = Preprocessing(SIZE, (0.0,) * 3, (0.02,) * 3)
    found = [api.evaluate(file, "data.npz", preprocessing=each) for each in (known, other)]
    assert found[0] == acq("evaluate", file, *KNOWN, *DATA, "--json").json()["top1"]
    assert api.target(file, preprocessing=other).preprocessing == other


@pytest.mark.filterwarnings("default::acq.errors.Note")
def test_an_evaluation_names_or_refuses_a_guessed_normalisation(file: str, folder: Path) -> None:
    """With batch norms ImageNet's is assumed and said. Without them it could not be checked."""
    assert any("so ImageNet's are assumed" in line for line in acq("evaluate", file, *DATA).notes)
    module = resolve(NETWORK[0], input_size=SIZE).model
    exported(module, folder / "folded.onnx", SIZE, dynamo=False, folded=True, free=True)
    assert "the normalisation of the images is not known" in refusal("evaluate", "folded.onnx", *DATA)


def test_a_plan_is_shown_with_the_names_of_the_network(file: str) -> None:
    found = acq("inspect", file, *KNOWN, "--json").json()
    assert {"0", "3", "8"} <= {row["name"] for row in found["plan"]}
    assert found["output"]["returned"] == "scores"


def test_a_run_ends_with_a_file_that_replaces_it(file: str) -> None:
    """Names are those of the float file, and the run says where it came from."""
    figures = acq(*quantize("--json", network=[file, *KNOWN], export=True)).json()
    assert figures["model"] == file
    made = onnx.load("run/model.onnx")
    assert ([value.name for value in made.graph.input], [value.name for value in made.graph.output]) == (
        ["pixels"],
        ["scores"],
    )
    assert "top1" in acq("evaluate", "run/model.onnx", *DATA, "--json").json()
    raw = acq("export", "run", "--raw-images", "--out", "raw.onnx", "--json")
    assert raw.code == 0
    assert [value.name for value in onnx.load("raw.onnx").graph.input] == ["images"]
    assert "has its own weights and sizes" in refusal("evaluate", "run/model.onnx", *KNOWN, *DATA)
    assert "quantized already" in refusal("quantize", "run/model.onnx", *KNOWN)


def test_a_graph_is_cut_before_what_is_not_read(file: str, folder: Path) -> None:
    """The message says where; the file of the run has it back."""
    model = onnx.load(file)
    model.graph.node.append(helper.make_node("NonZero", ["scores"], ["places"], name="last"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("places", onnx.TensorProto.INT64, None))
    onnx.save(model, file)
    words = "NonZero (node 'last') is no operator that acq reads; cut the graph before it with --outputs 'scores'"
    assert words in refusal("inspect", file, *KNOWN)
    acq(*quantize("--json", "--outputs", "scores", network=[file, *KNOWN], export=True)).json()
    assert [value.name for value in onnx.load("run/model.onnx").graph.output] == ["places"]
    assert (folder / "run" / "tail.onnx").exists()
    assert "goes on behind the network's outputs" in refusal("evaluate", "run/model.onnx", *DATA)
    assert acq("benchmark", "run", "--seconds", "0", "--json").json()["without_tail"]
    assert acq("benchmark", "run", "--seconds", "0").text().splitlines()[-1].startswith("both files end at")


def test_a_fixed_batch_is_the_only_one_that_is_measured(file: str) -> None:
    """The lines and the JSON say so, and the report shows the latency."""
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, file)
    assert acq(*quantize(network=[file, *KNOWN], export=True)).code == 0
    found = acq("benchmark", "run", "--seconds", "0", "--json").json()
    assert found["fixed_batch"] == 4
    assert [(row["threads"], row["batch"]) for row in found["latencies"]] == [(1, 4), (2, 4)]
    last = acq("benchmark", "run", "--seconds", "0").text().splitlines()[-1]
    assert last == "the file takes 4 images at once, so no other batch is measured"
    assert acq("report", "run").code == 0
    assert "ms per 4 images" in html.unescape(Path("run/report.html").read_text())


def test_a_graph_is_cut_at_two_values_that_both_decide(file: str, folder: Path) -> None:
    """The run counts both, and its file has what is behind them, with the names and nearly the values of before."""
    model = onnx.load(file)
    behind = [
        helper.make_node("Mul", ["scores", "scores"], ["squares"]),
        helper.make_node("NonZero", ["scores"], ["places"], name="first"),
        helper.make_node("ReduceMax", ["squares", "axis"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["squares", "bound"], ["above"]),
        helper.make_node("NonZero", ["above"], ["far"], name="second"),
    ]
    model.graph.node.extend(behind)
    model.graph.initializer.append(helper.make_tensor("bound", FLOAT, [], [0.0]))
    model.graph.initializer.append(helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [1]))
    del model.graph.output[:]
    for name, kind in (("places", onnx.TensorProto.INT64), ("largest", FLOAT), ("far", onnx.TensorProto.INT64)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, file)
    figures = acq(
        *quantize(
            "--json",
            "--outputs",
            "scores,squares",
            "--set",
            "generator.steps=0",
            "--bits",
            "w8a8",
            network=[file, *KNOWN],
            export=True,
        )
    ).json()
    assert figures["output"]["counted"] == "scores,squares"
    float_session, session = (
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]) for name in (file, "run/model.onnx")
    )
    assert [value.name for value in session.get_outputs()] == ["places", "largest", "far"]
    images = np.random.default_rng(0).standard_normal((4, *SIZE)).astype(np.float32)
    wanted, found = (each.run(None, {"pixels": images}) for each in (float_session, session))
    assert [value.dtype for value in found] == [value.dtype for value in wanted]
    assert found[0].shape[0] == found[2].shape[0] == 2  # the image and the score of each value that is not zero
    np.testing.assert_allclose(found[1], wanted[1], rtol=0.2)
