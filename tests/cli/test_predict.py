from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import NETWORK, acq, of, quantize, refusal
from PIL import Image

import acq as library
from acq.core.pixels import from_bytes

NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def pictures(folder: Path) -> list[str]:
    """Two pictures of the network's size and one of another, and the names of its classes."""
    rng = np.random.default_rng(0)
    for name, side in (("a.png", 16), ("b.png", 16), ("large.png", 40)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name)
    (folder / "names.txt").write_text("\n".join(NAMES))
    return ["a.png", "b.png", "large.png"]


@pytest.mark.filterwarnings("default::acq.errors.Note")
def test_classes_are_named_with_their_probability(run: Path, pictures: list[str]) -> None:
    """They are those of the student, the most likely first; a picture of another size is framed, with a note."""
    answer = acq("predict", "run", *pictures, "--classes", "names.txt", "--json")
    student = library.load("run")
    pixels = np.stack([np.asarray(Image.open(name)) for name in pictures[:2]])
    assert student.preprocessing is not None
    with torch.no_grad():
        shares = 100 * student.logits(from_bytes(pixels, student.preprocessing)).softmax(1)
    (note,) = answer.notes
    assert "1 of 3 images have another size than 16x16" in note
    made = json.loads(answer.out)["predictions"]
    assert [each["image"] for each in made] == pictures
    for each, row in zip(made, shares, strict=False):
        found = [(answer["name"], answer["percent"]) for answer in each["answers"]]
        values, order = row.topk(3)
        assert [name for name, _ in found] == [NAMES[index] for index in order]
        assert [percent for _, percent in found] == pytest.approx(values.tolist(), rel=1e-4)


def test_a_line_per_picture(run: Path, pictures: list[str]) -> None:
    """Without names, classes have their number; ``--top`` says how many there are."""
    lines = acq("predict", "run", "a.png", "b.png", "--top", "1").text().splitlines()
    for name, line in zip(pictures, lines, strict=False):
        word, number, percent, unit = line.removeprefix(f"{name}  ").split()
        assert (word, unit) == ("class", "%")
        assert int(number) in range(5)
        assert 20 <= float(percent) <= 100


def test_a_run_and_its_file_keep_the_names(folder: Path, pictures: list[str]) -> None:
    """Those that the run was given; its report shows them, and folders of data may be named by them."""
    for name, picture in zip(("eel", "bee"), pictures, strict=False):
        (folder / "data" / name).mkdir(parents=True)
        Image.open(picture).save(folder / "data" / name / "0.png")
    assert acq(*quantize("--classes", "names.txt", "--data", "data", export=True)).code == 0
    lines = [acq("predict", target, "a.png").text() for target in ("run", "run/model.onnx")]
    assert lines[0].split()[1] in NAMES
    assert lines[0].split()[::3] == lines[1].split()[::3]
    page = (folder / "run" / "report.html").read_text()
    assert any(f"<figcaption>{name}, seen as" in page for name in NAMES)
    assert acq("evaluate", "run/model.onnx", "--data", "data", "--json").json()["test_images"] == 2


def test_labels_that_apply_are_named(folder: Path, pictures: list[str]) -> None:
    """Where none does, the line says so."""
    sure = ["--output-kind", "multilabel", "--classes", "names.txt"]
    made = acq("predict", *NETWORK, "a.png", *sure, "--json").json()["predictions"][0]["answers"]
    assert all(answer["percent"] >= 50 for answer in made)
    shares = [answer["percent"] for answer in made]
    assert shares == sorted(shares, reverse=True)
    line = acq("predict", *NETWORK, "a.png", *sure).text()
    assert line.strip() == "a.png  " + ", ".join(f"{each['name']} {each['percent']:.1f} %" for each in made)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["none.png"], "there is no file none.png; give an image"),
        (["tinynet.py"], "tinynet.py is a broken image, or too narrow"),
        (["a.png", "--top", "0"], "--top is 0; give at least 1"),
        (["a.png", "--classes", "none.txt"], "none.txt cannot be read"),
        (["a.png", "--classes", "tinynet.py"], "has a class without a name"),
    ],
)
def test_a_wrong_request_is_refused(run: Path, pictures: list[str], words: list[str], fact: str) -> None:
    """In one line."""
    assert fact in refusal("predict", "run", *words)


def test_names_must_fit_the_network(run: Path, pictures: list[str]) -> None:
    """As many as classes, also for a run and for an evaluation."""
    Path("two.txt").write_text("ant\nbee\n")
    fact = "there are 2 names of classes but the network returns 5 classes"
    assert fact in refusal("predict", "run", "a.png", "--classes", "two.txt")
    assert fact in refusal("evaluate", "run", "--data", "data.npz", "--classes", "two.txt")
    assert fact in refusal(*quantize("--out", "other", "--classes", "two.txt"))
    assert fact in refusal(*quantize("--out", "other", "--classes", "two.txt", "--dry-run"))


def test_a_map_names_no_classes_of_images(pictures: list[str]) -> None:
    """It says what the network returns."""
    assert "no classes of images; evaluate it with labels" in refusal("predict", *of("cells"), "a.png")
