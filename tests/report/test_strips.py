from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.made_run import SIDES, make_run, read, write

from acq.errors import RequestError
from acq.report.strips import read_strips

INDEX = "samples/samples.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def pixels_of(address: str) -> np.ndarray:
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/png"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


def test_examples_are_ordered_by_class_with_their_images(folder: Path) -> None:
    """Every stage has the pixels of its file, the finished one last."""
    strips = read_strips(folder)
    assert [(strip.label, strip.seen) for strip in strips] == [(label, 3) for label in range(4)]
    assert list(strips[0].stages) == ["proposal", "start", "finished"]
    for stage, address in strips[3].stages.items():  # of the first sample, whose class is 3
        with Image.open(folder / "samples" / f"00-{stage}.png") as image:
            assert np.array_equal(pixels_of(address), np.asarray(image))


def test_images_as_generated_have_one_stage(tmp_path: Path) -> None:
    """Then a strip is the finished image, and the same with its attention."""
    (strip, *_) = read_strips(make_run(tmp_path / "run", stages=("finished",)))
    assert list(strip.stages) == ["finished"]
    assert strip.width == pytest.approx(2 * 1.5 + 0.06)


def test_centres_lie_in_the_last_image(folder: Path) -> None:
    """-1 and 1 are its borders, x from the left, y from the top."""
    strip = read_strips(folder)[0]
    left = strip.width - strip.side
    assert strip.side == pytest.approx(SIDES[0] / SIDES[1])
    assert strip.position((-1.0, -1.0)) == pytest.approx((left, 0.0))
    assert strip.position((1.0, 1.0)) == pytest.approx((strip.width, 1.0))
    assert strip.position(strip.requested) == pytest.approx((left + 0.75 * strip.side, 0.25))


def test_the_veil_is_opaque_where_the_attention_is(folder: Path) -> None:
    """Red everywhere, and in the proportions of the image."""
    veil = pixels_of(read_strips(folder)[0].veil)  # attention [[0, 1], [0.5, 0]]
    height, width, channels = veil.shape
    assert channels == 4
    assert width / height == pytest.approx(SIDES[0] / SIDES[1], rel=0.02)
    left_top, right_top, left_bottom = veil[0, 0, 3], veil[0, -1, 3], veil[-1, 0, 3]
    assert right_top > left_bottom > left_top
    assert (veil[..., 0] > veil[..., 1]).all()


def test_large_images_become_small_ones(folder: Path) -> None:
    """So that the page stays small; a grey image stays grey."""
    Image.new("L", (900, 300)).save(folder / "samples" / "00-finished.png")
    strip = read_strips(folder)[3]
    assert pixels_of(strip.stages["finished"]).shape == (37, 112)
    assert strip.side == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hosts", "samples/00-start.png"])
def test_only_files_of_the_folder_are_read(folder: Path, name: str) -> None:
    """An index may come from a stranger."""
    Image.new("L", (2, 2)).save(folder / "secret.png")
    rows = read(folder, INDEX)
    rows[0]["files"]["start"] = name
    write(folder, INDEX, rows)
    with pytest.raises(RequestError, match=r"samples\.json is damaged .*is not a file name"):
        read_strips(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"files": {}},
        {"attention": []},
        {"attention": [[]]},
        {"attention": [[1.0], [1.0, 2.0]]},
        {"attention": [["much"]]},
        {"attention": [0.5, 0.5]},
        {"requested": [0.1]},
        {"label": "cat"},
    ],
)
def test_a_damaged_index_is_named(folder: Path, values: dict[str, Any]) -> None:
    """In one line."""
    rows = read(folder, INDEX)
    write(folder, INDEX, [rows[0] | values])
    with pytest.raises(RequestError, match=r"samples\.json is damaged \(.*\); quantize again") as caught:
        read_strips(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_image_is_named(folder: Path) -> None:
    (folder / "samples" / "01-start.png").write_text("no picture")
    with pytest.raises(RequestError, match=r"01-start\.png is damaged"):
        read_strips(folder)
    (folder / "samples" / "01-start.png").unlink()
    with pytest.raises(RequestError, match=r"there is no .*01-start\.png; quantize again"):
        read_strips(folder)
