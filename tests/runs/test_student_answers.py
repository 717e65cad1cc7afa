"""What a student returns is saved with it, and damage to it is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import ANSWERS, answering
from helpers import SIZE, images, student_from, student_of

from acq.errors import RequestError
from acq.network.trace import trace
from acq.runs.names import QUANTIZATION
from acq.runs.student_file import load, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(student_of("resnet"), tmp_path, {})
    return tmp_path


def document_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / QUANTIZATION).read_text())
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_student_returns_travels_with_it(name: str, tmp_path: Path) -> None:
    """Structure, constants and values are those of the saved one, and so is what decides."""
    student, x = student_from(trace(answering(name), SIZE)), images(4)
    save(student, tmp_path, {})
    loaded = load(tmp_path)
    with torch.no_grad():
        assert all(map(torch.equal, loaded.returned(x), student.returned(x)))
        assert torch.equal(loaded.logits(x), student.logits(x))
        assert type(loaded(x)) is type(student(x))
    assert loaded.answer == student.answer


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "map"},
        {"size": 0},
        {"size": 1},
        {"size": 4},
        {"kind": "multilabel", "size": -3},
        {"counted": "b"},
        {"logits": "nothing"},
        {"logits": "image"},
        {"structure": {"tuple": ["tensor", "tensor"]}, "counted": "0"},
        {"structure": {"tuple": []}, "counted": "0"},
        {"structure": {"code": "print()"}},
        {"structure": None},
    ],
)
def test_a_damaged_answer_is_refused(damage: dict[str, Any], folder: Path) -> None:
    """Another kind, size, name, node or structure than the graph has is one line."""
    document = document_of(folder)
    document["answer"].update(damage)
    (folder / QUANTIZATION).write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"is damaged \(.*\); quantize again") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("returned", [[], [[]], [[1]], [[{"node": "image"}, {"node": "image"}]], [{"node": "image"}]])
def test_a_damaged_output_is_refused(returned: list[Any], folder: Path) -> None:
    """The graph must return one tensor for each of the structure's."""
    document = document_of(folder)
    document["nodes"][-1].update(args=returned)
    (folder / QUANTIZATION).write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"is damaged \(.*\); quantize again"):
        load(folder)
