"""Whole runs of networks that answer with maps, sequences, values, and several tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from helpers import SIZE, conv, images, settled
from small_runs import KNOWN, SETTINGS
from torch import Tensor, nn
from torch.nn import functional as F

from acq import api
from acq.api.reports import write_report
from acq.core.structures import flattened
from acq.errors import RequestError
from acq.recipe import Result

H, W = SIZE[1:]
FEW: dict[str, Any] = {
    "device": "cpu", "images": {"count": 16, "batch": 16, "steps": 2}, "calibration": {"images": 8},
    "student": {**SETTINGS["student"], "steps": 2, "renew_count": 0},
}  # fmt: skip


class Dense(nn.Module):
    """A network with two convolutions as heads: of every cell, and of a coarser grid."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 6), conv(6, 8, stride=2)
        self.cells, self.boxes, self.answer = nn.Conv2d(6, 4, 1), nn.Conv2d(8, 6, 1), answer

    def extra_repr(self) -> str:
        return str(self.answer)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        return self.answer(self.cells(x), self.boxes(F.relu(self.down(x))))


NETWORKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "map": (lambda cells, boxes: cells.softmax(1), f"4 classes per cell of {H}x{W}"),
    "yes or no": (lambda cells, boxes: cells[:, 2:3].sigmoid(), f"one yes-or-no answer per cell of {H}x{W}"),
    "sequence": (lambda cells, boxes: cells.mean(2).transpose(1, 2).softmax(2), f"4 classes per step of {W}"),
    "values": (lambda cells, boxes: F.normalize(boxes.mean((2, 3))), "6 values"),
}


def dense(name: str) -> nn.Module:
    return settled(Dense(NETWORKS[name][0]))


def quantized(model: nn.Module, out: Path, **options: Any) -> Result:
    known = {"input_size": KNOWN.input_size, "mean": KNOWN.mean, "std": KNOWN.std}
    return api.quantize(model, **known, bits="w8a8", out=out, settings=FEW, progress=False, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_kind_becomes_a_student_and_a_file(name: str, tmp_path: Path) -> None:
    """Both return what the network returns, at 8 bits nearly the same, and the report says how it decides."""
    model, meaning = dense(name), NETWORKS[name][1]
    result = quantized(model, tmp_path / "run")
    summary = result.summary
    assert summary["output"]["meaning"] == meaning
    assert summary["steps"]["generator"] == 0
    assert summary["agreement"] > 90
    assert (summary["attention"]["label_agreement"] is None) == (name == "values")
    assert summary["attention"]["correlation"] is None
    assert result.exported is not None
    assert result.exported.parity.optimised.agreement > 99.99
    loaded, x = api.load(tmp_path / "run"), images(3)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.student(x))
        assert F.cosine_similarity(loaded(x).flatten(1), model(x).flatten(1)).min() > 0.95
    page = write_report(tmp_path / "run").read_text()
    assert meaning in page
    assert ("cosine" in page.split("<h2>")[0]) == (name == "values")


def test_several_tensors_count_at_once(tmp_path: Path) -> None:
    """A dictionary of a map and of values: both are in the file, and the student is close in both."""
    model = settled(Dense(lambda cells, boxes: {"cells": cells, "boxes": boxes, "mean": boxes.mean((2, 3))}))
    result = quantized(model, tmp_path / "run", outputs="cells,boxes", output_kind="map,values")
    assert result.summary["output"]["kind"] == "map,values"
    assert result.exported is not None
    assert result.exported.parity.optimised.agreement > 99.9
    with torch.no_grad():
        for found, wanted in zip(flattened(result.student(images(2)))[1], flattened(model(images(2)))[1], strict=True):
            assert F.cosine_similarity(found.flatten(1), wanted.flatten(1)).min() > 0.95


def test_masks_measure_a_map(tmp_path: Path) -> None:
    """The labels of a file may be masks; mean IoU of the network with its own answers is 100 %."""
    model, pixels = dense("map"), np.random.default_rng(0).integers(0, 256, (6, H, W, 3), dtype=np.uint8)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        masks = model(x).argmax(1).numpy().astype(np.uint8)
    np.savez(tmp_path / "masks.npz", images=pixels, labels=masks)
    assert api.evaluate(model, tmp_path / "masks.npz", preprocessing=KNOWN) == pytest.approx(100)
    summary = quantized(model, tmp_path / "run", data=tmp_path / "masks.npz", export=False).summary
    assert summary["teacher_mean_iou"] == 100
    assert 50 < summary["mean_iou"] <= 100
    assert summary["top1"] is None
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["mean_iou"] == summary["mean_iou"]


def test_values_have_no_accuracy(tmp_path: Path) -> None:
    """Labels say nothing about numbers that name nothing; the data are refused before anything is trained."""
    np.savez(tmp_path / "data.npz", images=np.zeros((2, H, W, 3), np.uint8), labels=np.zeros(2, np.int64))
    with pytest.raises(RequestError, match=r"returns 6 values, which no labels are compared with; leave .* out"):
        quantized(dense("values"), tmp_path / "run", data=tmp_path / "data.npz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"generator": {"steps": 5}}, r"generator\.steps is 5, but a generator asks images for one answer each"),
        ({"images": {"losses": {"centre": 1.0}}}, r"images\.losses\.centre is 1, but the network has no one answer"),
        ({"preset": "gdfq"}, "asks images for one class each"),
    ],
)
def test_what_needs_one_answer_per_image_is_refused(settings: dict[str, Any], fact: str) -> None:
    """A generator, centres and the presets that live on them."""
    known = {"input_size": KNOWN.input_size, "mean": KNOWN.mean, "std": KNOWN.std}
    with pytest.raises(RequestError, match=fact):
        api.quantize(dense("map"), **known, settings={"device": "cpu", **settings}, progress=False)


def test_an_unknown_kind_is_refused() -> None:
    """The line lists the kinds."""
    text = refusal("evaluate", "resnet20-cifar10", "--data", "sample", "--output-kind", "class,boxes")
    assert "'boxes' is not known; give class, multilabel, map, sequence or values" in text
