from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIZE, network
from test_recipe import quick
from torch import nn

import acq

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 1, "batch": 4, "noise_dim": 4, "width": 8},
    "images": {"count": 16, "batch": 16, "steps": 1},
    "student": {"steps": 0, "batch": 4, "calibration_images": 8},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def quantize(**changes: Any) -> acq.Result:
    return acq.quantize(network("all convolutional"), **{"input_size": SIZE, "settings": SETTINGS} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty random images with random labels."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (20, 16, 16, 3), np.uint8), labels=rng.integers(0, 5, 20))
    return path


def test_every_public_name_is_there() -> None:
    """What ``acq`` says that it offers can be imported, and has a word about itself."""
    for name in acq.__all__:
        assert getattr(acq, name).__doc__


def test_settings_are_those_that_were_given() -> None:
    """Bits are an argument or a setting, the argument counting more; a preset may be either too."""
    assert quantize().summary["bits"] == "w4a4"
    assert quantize(settings={**SETTINGS, "bits": "w8a8"}).summary["bits"] == "w8a8"
    assert quantize(settings={**SETTINGS, "bits": "w8a8"}, bits="w3a3").summary["bits"] == "w3a3"
    assert quantize(preset="fast", settings={**SETTINGS, "placement": "relu-only"}).summary["preset"] == "fast"
    assert quantize(settings={**SETTINGS, "preset": "gdfq"}).summary["preset"] == "gdfq"


def test_preprocessing_is_given_or_that_of_imagenet() -> None:
    """The student carries it, so that its images can be prepared later."""
    assert quantize().student.preprocessing == acq.Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    given = quantize(mean=[0.5] * 3, std=[0.25] * 3, input_size=[3, 16, 16]).student.preprocessing
    assert given == acq.Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": (3, 16)}, "--input-size"),
        ({"input_size": ("3", "16", "16")}, "--input-size"),
        ({"input_size": (1, 16, 16)}, "1 channels"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 values"),
        ({"bits": "w1a1"}, "out of range"),
        ({"preset": "quick"}, "not known"),
        ({"settings": {"studnt": {}}}, "did you mean 'student'"),
        ({"data": "nowhere.npz"}, "no data at nowhere.npz"),
        ({"resume": True}, "no run"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
)
def test_a_wrong_request_is_told_and_nothing_is_written(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """One line, as on the command line."""
    with pytest.raises(acq.RequestError, match=words) as caught:
        quantize(out=tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_records_are_watched() -> None:
    """Every step is told, in order."""
    seen: list[acq.Record] = []
    quantize(watch=seen.append)
    assert [record.phase for record in seen] == ["generator", "images", "calibration", "freezing"]


def test_a_network_is_evaluated_with_its_preprocessing(data: Path) -> None:
    """Equals the share of right answers on the same images, counted by hand; a limit takes the first."""
    model, known = network("residual"), acq.Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    with np.load(data) as archive:
        pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(archive["labels"])
    with torch.no_grad():
        right = model((pixels - 0.5) / 0.25).argmax(1) == labels
    model.train()
    assert acq.evaluate(model, data, preprocessing=known) == pytest.approx(100 * right.float().mean().item())
    assert acq.evaluate(model, str(data), preprocessing=known, limit=5) == pytest.approx(
        100 * right[:5].float().mean().item()
    )
    assert model.training


def test_a_run_and_its_file_are_evaluated_by_path(data: Path, tmp_path: Path) -> None:
    """Both are what the student is."""
    student = quantize(out=tmp_path / "run").student
    file = acq.export_onnx(student, tmp_path / "model.onnx").path
    assert acq.evaluate(tmp_path / "run", data) == acq.evaluate(str(file), data) == acq.evaluate(student, data)
    with pytest.raises(acq.RequestError, match="there is no file"):
        acq.evaluate("none.onnx", data)


def test_a_network_without_preprocessing_is_not_evaluated(data: Path) -> None:
    """How its images are normalised cannot be guessed."""
    with pytest.raises(acq.RequestError, match="give preprocessing"):
        acq.evaluate(network("residual"), data)


def test_what_is_no_run_is_not_loaded(tmp_path: Path) -> None:
    """Nothing there, a folder of something else, or a damaged file: one line each."""
    with pytest.raises(acq.RequestError, match="no quantized student"):
        acq.load(tmp_path / "none")
    with pytest.raises(acq.RequestError, match="no quantized student"):
        acq.load(tmp_path)
    quantize(out=tmp_path / "run")
    with (tmp_path / "run" / "student.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(acq.RequestError, match="quantize again"):
        acq.load(tmp_path / "run")


def test_networks_of_every_kind_go_through() -> None:
    """From a network without a linear head to one with an operator that stays in floating point."""
    for name in ("unknown operator", "pre-activation"):
        result = acq.quantize(network(name), input_size=SIZE, settings=SETTINGS)
        assert result.student(torch.zeros(2, *SIZE)).shape == (2, 5)
        assert (result.summary["floating"] > 0) == (name == "unknown operator")


def test_images_need_not_be_square_or_in_colour() -> None:
    """A network for grey images of 20 x 12 pixels is quantized like any other."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    result = acq.quantize(model, input_size=(1, 20, 12), mean=[0.5], std=[0.5], settings=SETTINGS)
    assert result.student(torch.zeros(2, 1, 20, 12)).shape == (2, 3)
