from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from answers import ANSWERS, Answering, answering
from helpers import CLASSES, SIZE, conv, images, settled, student_from
from torch import Tensor, nn

from acq.core.outputs import Output
from acq.core.scores import Scores
from acq.core.structures import flattened
from acq.export.answers import FileAnswer
from acq.export.check import check
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.export.onnx_file import export_onnx
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student


def student_of(model: nn.Module, outputs: str | None = None) -> Student:
    made = student_from(trace(model, SIZE, outputs), "w8a8")
    convert_to_integers(made)
    return made.eval()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_file_returns_what_its_student_returns(name: str, tmp_path: Path) -> None:
    """Every returned tensor is an output of its name, on every engine, for any number of images; one decides."""
    student = student_of(answering(name))
    made = export_onnx(student, tmp_path / "model.onnx", images(33))
    assert (made.parity.optimised.agreement, made.parity.plain.equal) == (100, 100)
    engine = Engine(tmp_path / "model.onnx")
    assert engine.answer.names == student.answer.names
    assert engine.answer.output == student.output
    for count in (1, 5):
        with torch.no_grad():
            wanted = flattened(student(images(count)))[1]
            logits = student.logits(images(count))
        found = engine.run(images(count).numpy())
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        assert student.output.same(engine(images(count)), logits).eq(1).all()


def test_names_that_a_file_cannot_have_are_changed() -> None:
    """An output may be called as the input, as a value of the file, or not at all."""
    student = student_of(settled(Answering(lambda z, one, x: {"images": z, "v0": one, "": x})), "images")
    model = onnx_model(student)
    assert [value.name for value in model.graph.output] == ["images_", "v0_", "_"]
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert FileAnswer.read(facts).names == ("images_", "v0_", "_")


FACTS = FileAnswer(("a", "b"), (1,), ("softmax",), CLASSES)
SEVERAL = Output((Scores("map", (3, 4, 4)), Scores("values", (2, 5))))


COUNTED = json.loads(FACTS.facts()["counted"])[0]
WRONG: list[dict[str, Any]] = [
    {"output": 2}, {"output": -1}, {"output": "a"}, {"ending": "relu"}, {"kind": "other"}, {"kind": "map"},
    {"shape": [1]}, {"shape": 5}, {"shape": []}, {"shape": [0]}, {"other": 1},
]  # fmt: skip


def test_the_metadata_describe_the_outputs() -> None:
    """What is written is read."""
    one = FileAnswer(("logits",), (0,), (None,), Output.of("multilabel", 1))
    for answer in (FACTS, one, FileAnswer(("a", "b"), (1, 0), ("sigmoid", None), SEVERAL)):
        assert FileAnswer.read({key: str(value) for key, value in answer.facts().items()}) == answer


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": "a,b"}, {"outputs": "{}"}, {"outputs": "[1]"}, {"counted": "2"}, {"counted": "[]"},
        *({"counted": json.dumps([{**COUNTED, **change}])} for change in WRONG),
    ],
)  # fmt: skip
def test_other_metadata_are_refused(change: dict[str, Any]) -> None:
    """Names that are no list, an output that is not there, and kinds that are not known."""
    with pytest.raises(ValueError):
        FileAnswer.read({**{key: str(value) for key, value in FACTS.facts().items()}, **change})


class Ending(nn.Module):
    """A small network whose last operator moves or joins values."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end, self.conv, self.one, self.other = end, conv(3, 8), nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.end(torch.stack([self.one(x), self.other(x)], 1))


ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda z: torch.cat([z[:, 0], z[:, 1]], 1),
    "slice": lambda z: z[:, 0, :4],
    "select": lambda z: z[:, 1],
    "split": lambda z: z[:, 0].split(3, 1)[1],
    "chunk": lambda z: z[:, 0].chunk(2, 1)[0],
    "softmax before a slice": lambda z: z[:, 0].softmax(1)[:, :4],
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_network_may_end_in_an_operator_that_moves_values(name: str, tmp_path: Path) -> None:
    """Its file says how it decides, and decides like the student."""
    student = student_from(trace(settled(Ending(ENDINGS[name])), SIZE), "w8a8")
    convert_to_integers(student)
    onnx.save(onnx_model(student.eval()), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(16))
    assert found.plain.agreement == 100
