"""Labelled pictures of another size than the network's, in the commands that measure with them."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from commands import NETWORK, acq, quantize, refusal
from PIL import Image

from acq import api
from acq.core.values import Framing

pytestmark = pytest.mark.filterwarnings("default::acq.errors.Note")
PICTURES = ["--data", "pictures"]
EACH = 8  # pictures per class
NOTE = "note: 40 of 40 images have another size than 16x16: the shorter side is resized to {} pixels (bilinear), "


@pytest.fixture
def pictures(folder: Path) -> Path:
    """Coloured blobs, five classes of them, in two sizes that are not the network's."""
    rng = np.random.default_rng(0)
    for label in range(5):
        (folder / "pictures" / f"{label}").mkdir(parents=True)
        for index in range(EACH):
            blobs = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
            size = (90, 64) if index % 2 else (50, 72)
            blobs.resize(size).save(folder / "pictures" / f"{label}" / f"{index}.png")
    return folder / "pictures"


def notes(*arguments: str) -> list[str]:
    answer = acq(*arguments)
    assert answer.code == 0, answer.err
    return [line for line in answer.notes if "another size" in line]


@pytest.mark.parametrize(("options", "resize"), [([], 18), (["--resize", "40"], 40), (["--crop", "16"], 18)])
def test_an_evaluation_says_once_how_pictures_are_framed(pictures: Path, options: list[str], resize: int) -> None:
    """On standard error, so the result alone is on standard output."""
    answer = acq("evaluate", *NETWORK, *PICTURES, *options, "--json")
    assert answer.json()["test_images"] == 5 * EACH
    (note,) = answer.notes
    assert note.startswith(NOTE.format(resize))


def test_pictures_of_the_network_s_size_need_no_note(folder: Path) -> None:
    """They are taken as they are, whatever is given."""
    plain = acq("evaluate", *NETWORK, "--data", "data.npz").text()
    assert acq("evaluate", *NETWORK, "--data", "data.npz", "--resize", "40").text() == plain


def test_a_dry_run_reads_pictures_of_another_size(pictures: Path) -> None:
    """With the note; the run would take them."""
    (note,) = notes(*quantize("--dry-run", *PICTURES, "--resize", "20"))
    assert note.startswith(NOTE.format(20))


def test_run_and_file_frame_pictures_as_the_network(pictures: Path) -> None:
    """The framing is in each of their files, so both have the accuracy that the run reported of the pictures."""
    run = quantize(*PICTURES, "--resize", "31", "--bits", "w8a8", "--set", "generator.steps=0", "--json", export=True)
    answer = acq(*run)
    figures = answer.json()
    assert len([line for line in answer.notes if line.startswith(NOTE.format(31))]) == 1
    framing = {"resize": 31, "interpolation": "bilinear"}
    assert yaml.safe_load(Path("run/config.yaml").read_text())["preprocessing"]["framing"] == framing
    assert json.loads(Path("run/quantization.json").read_text())["preprocessing"]["framing"] == framing
    metadata = {entry.key: entry.value for entry in onnx.load("run/model.onnx").metadata_props}
    assert (metadata["resize"], metadata["interpolation"]) == ("31", "bilinear")
    assert "--resize 31" in html.unescape(Path("run/report.html").read_text())
    found = {name: acq("evaluate", name, *PICTURES, "--json") for name in ("run", "run/model.onnx")}
    for answer in found.values():
        assert answer.json()["top1"] == figures["top1"]
        assert [line.startswith(NOTE.format(31)) for line in answer.notes] == [True]
    assert {api.target(name).preprocessing.framing for name in found} == {Framing(31)}
    teacher = acq("evaluate", *NETWORK, *PICTURES, "--resize", "31", "--json").json()
    usual = acq("evaluate", *NETWORK, *PICTURES, "--json").json()
    assert teacher["top1"] == figures["teacher_top1"] != usual["top1"]
    for name in found:
        (note,) = notes("evaluate", name, *PICTURES, "--resize", "40")
        assert note.startswith(NOTE.format(40))
        assert "--resize is 15 but the network takes 16x16" in refusal("evaluate", name, *PICTURES, "--resize", "15")
