"""A rehearsal tells what cannot be done, and changes nothing."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from helpers import NETWORKS, SIZE, Chain, conv, traced
from torch import Tensor, fx, nn

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan
from acq.quantization.student import Student
from acq.runs.rehearsal import rehearse

KNOWN = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)


class Distances(nn.Module):
    """An operator that has no equal in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        return x * torch.ops.aten._cdist_forward(rows, rows, 2.0, None).mean((1, 2), keepdim=True)[..., None]


def untrained(graph: fx.GraphModule) -> Student:
    return build(graph, plan(graph, NumberFormat(4, 4)), KNOWN)


@pytest.mark.parametrize("name", ["resnet", "squeeze-excite"])
def test_a_student_that_can_be_exported_passes(name: str) -> None:
    """Its layers run on integers, and the student is neither calibrated nor changed."""
    student = untrained(traced(name))
    before = copy.deepcopy(student.state_dict())
    found = rehearse(student, KNOWN)
    found.require_file(["openvino"])
    assert found.engines == ("onnxruntime", "openvino")
    assert not found.notes()
    layers = [node for node in student.plan.nodes if node.weight_bits]
    assert {found.place_of(node) for node in layers} == {"integer"}
    torch.testing.assert_close(student.state_dict(), before, equal_nan=True, rtol=0, atol=0)


def test_an_engine_that_is_not_known_is_refused_before_the_run() -> None:
    """A run would find it at its end alone."""
    found = rehearse(untrained(traced("resnet")), KNOWN)
    with pytest.raises(RequestError, match=r"engine 'openvinno' is not known .did you mean 'openvino'"):
        found.require_file(["openvinno"])


def test_what_stays_in_floating_point_is_told() -> None:
    """An operator that the planner does not know is computed in floating point by the file."""
    student = untrained(traced("unknown operator"))
    found = rehearse(student, KNOWN)
    places = {node.operator: found.place_of(node) for node in student.plan.nodes}
    assert places["aten.cumsum.default"] == "float"
    assert places["aten.conv2d.default"] == "integer"


def test_an_operator_without_equal_in_onnx_refuses_the_run() -> None:
    """Unless no file is wanted; the table says which operator it is."""
    student = untrained(trace(Chain(nn.ReLU(), Distances(), conv(8, 8), nn.ReLU()).eval(), SIZE))
    found = rehearse(student, KNOWN)
    with pytest.raises(RequestError, match=r"cdist.* cannot be exported to ONNX; .*; --no-export quantizes without"):
        found.require_file()
    (place,) = {found.place_of(node) for node in student.plan.nodes if "cdist" in node.operator}
    assert place.startswith("not possible: ")
    rehearse(student, KNOWN, export=False).require_file()


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is another folder for temporary files."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("acq.runs.student_file.save", full)
    with pytest.raises(RequestError, match=r"No space left on device\); set TMPDIR to another folder"):
        rehearse(untrained(traced("resnet")), KNOWN)


def test_a_file_that_is_not_wanted_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the note says so."""
    student = untrained(traced(next(iter(NETWORKS))))
    assert "--no-export" in rehearse(student, KNOWN, export=False).notes()[0]
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = rehearse(student, KNOWN)
    assert "the export was not tried, because onnx is not installed" in found.notes()[0]
    assert {found.place_of(node) for node in student.plan.nodes} == {""}
