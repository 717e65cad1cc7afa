from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIZE
from PIL import Image
from small_runs import request_, run, training_
from torch import Tensor, nn

from acq.core.pixels import to_bytes
from acq.core.values import Preprocessing
from acq.network.teacher import Teacher
from acq.network.trace import trace
from acq.runs.samples import write_samples
from acq.synthesis.dataset import Examples, SyntheticDataset, teach
from acq.training.images import EXAMPLES

pytestmark = pytest.mark.usefixtures("quick_runs")
STAGES = ("proposal", "start", "finished")


def samples_of(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "samples" / "samples.json").read_text())
    assert isinstance(rows, list)
    return rows


def test_a_run_keeps_its_first_images_in_three_stages(finished_run: Path) -> None:
    """Each example has a file per stage, and the index names exactly the files that are there."""
    rows = samples_of(finished_run)
    assert len(rows) == 10  # the first batch of the small run is smaller than EXAMPLES
    named = [name for row in rows for name in row["files"].values()]
    assert sorted(named) == sorted(file.name for file in (finished_run / "samples").glob("*.png"))
    assert all(row["files"] == {s: f"{i:02d}-{s}.png" for s in STAGES} for i, row in enumerate(rows))


def test_the_index_says_what_was_requested_and_realised(finished_run: Path) -> None:
    """A row has the label, the teacher's class, both centres and an attention map with maximum 1."""
    for row in samples_of(finished_run):
        assert row.keys() == {"label", "class", "requested", "realised", "attention", "files"}
        assert row["label"] in range(5)
        assert row["class"] in range(5)
        assert all(-1 <= value <= 1 for name in ("requested", "realised") for value in row[name])
        attention = np.array(row["attention"])
        assert attention.ndim == 2
        assert (attention.min() >= 0, attention.max()) == (True, 1.0)
        assert np.array_equal(attention, attention.round(3))


def test_figures_are_those_of_the_finished_images(tmp_path: Path) -> None:
    """The finished samples are images of the dataset, and class and centre are the teacher's for them."""
    training = training_(student={"renew_count": 0})  # renewal replaces images of the dataset
    for _ in training.run():
        pass
    context = training.context
    write_samples(tmp_path, context.teacher, context.preprocessing, context.examples, context.dataset)
    rows = samples_of(tmp_path)
    images = context.dataset.images[: len(rows)]  # its first batch, in order
    with torch.no_grad():
        output = context.teacher.read(images, context.dataset.label[: len(rows)])
    assert [row["class"] for row in rows] == output.logits.argmax(1).tolist()
    assert [row["label"] for row in rows] == context.dataset.label[: len(rows)].tolist()
    torch.testing.assert_close(torch.tensor([row["realised"] for row in rows]), output.centre, rtol=0, atol=6e-4)
    for pixels, row in zip(to_bytes(images, context.preprocessing), rows, strict=True):
        with Image.open(tmp_path / "samples" / row["files"]["finished"]) as shown:
            assert np.array_equal(np.asarray(shown), pixels)


def test_images_as_generated_have_one_stage(tmp_path: Path) -> None:
    """Without refinement, samples are the first images of the dataset, and no stage is invented."""
    run(request_(images={"steps": 0}), tmp_path / "run")
    rows = samples_of(tmp_path / "run")
    assert len(rows) == EXAMPLES
    assert all(row["files"].keys() == {"finished"} for row in rows)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == EXAMPLES


class Grey(nn.Module):
    """A network for images of any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_of_any_channels_are_images(tmp_path: Path, channels: int) -> None:
    """Pixels are kept bit for bit: grey, colour, or the first three of more channels."""
    size = (channels, *SIZE[1:])
    known = Preprocessing(size, (0.0,) * channels, (1.0,) * channels)
    teacher = Teacher(trace(Grey(channels).eval(), size))
    images = torch.randint(0, 256, (3, *size)) / 255
    label, centre = torch.zeros(3, dtype=torch.long), torch.zeros(3, 2)
    examples = Examples(images.flip(0), images, images, label, centre)
    write_samples(tmp_path, teacher, known, examples, SyntheticDataset(teach(images, teacher), label, centre))
    for index, image in enumerate((images * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        with Image.open(tmp_path / "samples" / f"{index:02d}-finished.png") as shown:
            assert np.array_equal(np.asarray(shown), image[..., 0] if channels == 1 else image[..., :3])
