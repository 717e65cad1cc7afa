"""Networks that return several tensors, or say yes or no to labels, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import acq, of, quantize, refusal

HEADS = of("Heads")


@pytest.fixture
def labels(folder: Path) -> Path:
    """Images with yes or no to five labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "labels.npz", images=pixels, labels=rng.integers(0, 2, (10, 5)))
    return folder / "labels.npz"


def test_the_output_that_decides_is_asked_for(folder: Path) -> None:
    """Without the option the line has names, shapes and the option."""
    line = refusal(*quantize(network=HEADS))
    assert "seen [N, 5], age [N, 3]; name the one that decides, such as --outputs seen" in line
    assert "no 'ages'" in refusal(*quantize("--outputs", "ages", network=HEADS))
    kind = refusal(*quantize("--outputs", "age", "--output-kind", "multilabel", network=HEADS))
    assert "the network ends in a softmax" in kind


def test_labels_are_quantized_measured_and_exported(labels: Path) -> None:
    """Summary, lines, report, file and evaluation speak of labels, and both outputs are in the file."""
    answer = acq(*quantize("--outputs", "seen", "--data", labels.name, network=HEADS, export=True))
    assert answer.out.startswith("labels     float ")
    summary = json.loads((labels.parent / "run" / "summary.json").read_text())
    assert summary["output"] == {
        "kind": "multilabel", "meaning": "5 labels, yes or no each", "size": 5,
        "counted": "seen", "returned": "seen, age",
    }  # fmt: skip
    assert (summary["top1"], summary["teacher_top1"]) == (None, None)
    for target in ("run", "run/model.onnx"):
        found = acq("evaluate", target, "--data", labels.name, "--json").json()
        assert found["label_accuracy"] == summary["label_accuracy"]
    network = acq("evaluate", *HEADS, "--outputs", "seen", "--data", labels.name).text()
    assert network == f"labels  {summary['teacher_label_accuracy']:.2f} %  (5 labels, yes or no each, 10 images)\n"
    page = (labels.parent / "run" / "report.html").read_text()
    assert "5 labels, yes or no each" in page
    assert "Accuracy of labels" in page


def test_inspection_names_what_decides(folder: Path) -> None:
    """The last line and the JSON say which output counts and what it says."""
    out = acq("inspect", *HEADS, "--outputs", "1").text()
    assert out.splitlines()[-1] == "it answers with 3 classes in age, which decides; returned: seen, age"
    found = acq("inspect", *HEADS, "--outputs", "age", "--json").json()["output"]
    assert found == {"kind": "class", "meaning": "3 classes", "size": 3, "counted": "age", "returned": "seen, age"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("data.npz", "labels in data.npz are [10]; the network takes 0 and 1, [N, 5]"),
        ("classes", "returns 5 labels, yes or no each; give a .npz file"),
    ],
)
def test_labels_of_another_kind_are_refused(data: str, words: str, labels: Path) -> None:
    """Class indices and folders of classes do not say yes or no to labels."""
    (labels.parent / "classes").mkdir()
    assert words in refusal("evaluate", *HEADS, "--outputs", "seen", "--data", data)


def test_a_kind_that_is_not_known_is_refused(labels: Path) -> None:
    """The line has the kinds; a run folder and a file know their own."""
    wrong = ("--data", labels.name, "--output-kind", "box")
    assert "give class, multilabel, map, sequence or values" in refusal("evaluate", *HEADS, *wrong)
    assert "output_kind" in refusal(*quantize("--output-kind", "box", network=HEADS))
