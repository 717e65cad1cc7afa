from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIZE, Chain, Residual
from torch import Tensor, nn
from torch.nn import functional as F

import acq

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 20, "batch": 16, "noise_dim": 8, "width": 16},
    "images": {"count": 64, "batch": 32, "steps": 6, "renew_every": 3, "renew_count": 16},
    "student": {"steps": 8, "batch": 16, "calibration_images": 32},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.25)
CONTRACT = {
    "model", "bits", "placement", "ends", "preset", "seed", "device", "seconds", "peak_memory_mb", "steps",
    "teacher_top1", "top1", "agreement", "attention", "float_bytes", "quantized_bytes",
}  # fmt: skip


def patches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3, 16, 16] with a coloured patch somewhere; the colour, one of five, is the label [N]."""
    rng = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
    label = torch.randint(5, (count,), generator=rng)
    images = 0.3 * torch.rand(count, 3, 16, 16, generator=rng)
    for image, k, (x, y) in zip(images, label, torch.randint(11, (count, 2), generator=rng), strict=True):
        image[:, y : y + 5, x : x + 5] = colours[k].view(3, 1, 1)
    return images, label


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small residual network that has learned to tell five colours."""
    torch.manual_seed(0)
    model = Chain(Residual(False), Residual(False))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(60):
        images, label = patches(32, step)
        loss = F.cross_entropy(model(normalised(images)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.train()
    model.stem.eval()  # somebody's own mixture of modes
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images of the same kind, as a file."""
    path = tmp_path_factory.mktemp("data") / "patches.npz"
    images, label = patches(200, 1000)
    np.savez(path, images=(images * 255).round().byte().permute(0, 2, 3, 1).numpy(), labels=label.numpy())
    return path


@pytest.fixture(scope="module")
def quantize(trained: nn.Module, data: Path) -> Callable[..., acq.Result]:
    """The story from a network to a folder; ``changes`` to its settings."""

    def story(out: Path, **changes: Any) -> acq.Result:
        return acq.quantize(
            trained, input_size=SIZE, mean=MEAN, std=STD, out=out, data=data, settings={**SETTINGS, **changes}
        )

    return story


@pytest.fixture(scope="module")
def before(trained: nn.Module) -> nn.Module:
    """A copy of the network, its gradients and modes, from before the run."""
    model = copy.deepcopy(trained)
    for value, old in zip(model.parameters(), trained.parameters(), strict=True):
        value.grad = None if old.grad is None else old.grad.clone()
    return model


@pytest.fixture(scope="module")
def result(
    quantize: Callable[..., acq.Result], before: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> acq.Result:
    return quantize(tmp_path_factory.mktemp("story") / "run")


def test_the_folder_is_complete(result: acq.Result) -> None:
    """Settings, figures, student, samples and summary are there, and nothing half written."""
    assert result.folder is not None
    found = {str(file.relative_to(result.folder)) for file in result.folder.rglob("*") if file.is_file()}
    assert {
        "config.yaml", "metrics.jsonl", "student.safetensors", "quantization.json", "summary.json",
        "samples/samples.json", "samples/000.png",
    } <= found  # fmt: skip
    assert not [name for name in found if "partial" in name or name == ".owner"]


def test_the_summary_keeps_the_contract(result: acq.Result) -> None:
    """Every name that other programs rely on, in the file as in the result, with values that JSON can hold."""
    assert result.folder is not None
    stored = json.loads((result.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert stored == result.summary
    assert stored.keys() >= CONTRACT
    assert stored["attention"].keys() >= {"correlation", "spread", "eval_train_similarity"}
    assert stored["steps"] == {"generator": 20, "images": 12, "student": 8}
    assert 0 < stored["quantized_bytes"] < stored["float_bytes"]
    assert stored["seconds"] > 0


def test_the_student_is_nearly_as_good_as_the_teacher(result: acq.Result) -> None:
    """At 4 bits, without a training image: on images of the kind that the teacher knows."""
    assert result.summary["teacher_top1"] > 90
    assert result.summary["top1"] > result.summary["teacher_top1"] - 20
    assert result.summary["agreement"] > 70


def test_the_saved_student_is_the_trained_one(result: acq.Result) -> None:
    """Loaded without the network that it came from it gives the same logits, bit for bit."""
    assert result.folder is not None
    student = acq.load(result.folder)
    images = normalised(patches(50, 7)[0])
    with torch.no_grad():
        assert torch.equal(student(images), result.student(images))
    assert not student.training
    assert student.preprocessing == acq.Preprocessing(SIZE, MEAN, STD)


def test_evaluation_agrees_with_the_summary(result: acq.Result, trained: nn.Module, data: Path) -> None:
    """The student in hand, the one in the folder and the teacher get the accuracy that was reported."""
    assert result.folder is not None
    for student in (result.student, acq.load(result.folder)):
        assert acq.evaluate(student, data) == pytest.approx(result.summary["top1"], abs=0.01)
    preprocessing = acq.Preprocessing(SIZE, MEAN, STD)
    assert acq.evaluate(trained, data, preprocessing=preprocessing) == pytest.approx(result.summary["teacher_top1"])


def test_one_seed_one_student(result: acq.Result, quantize: Callable[..., acq.Result], tmp_path: Path) -> None:
    """The same request again gives the same bytes; another seed gives others."""
    assert result.folder is not None
    expected = (result.folder / "student.safetensors").read_bytes()
    torch.manual_seed(99)
    quantize(tmp_path / "again")
    quantize(tmp_path / "other", seed=1)
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == expected
    assert (tmp_path / "other" / "student.safetensors").read_bytes() != expected
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    for name in CONTRACT - {"seconds", "peak_memory_mb"}:
        assert again[name] == result.summary[name], name


def test_the_network_is_left_as_it_was(result: acq.Result, trained: nn.Module, before: nn.Module) -> None:
    """Modes, weights, statistics, counters and gradients of the user's own module are untouched by a whole run."""
    assert [part.training for part in trained.modules()] == [part.training for part in before.modules()]
    for name, value in before.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name
    for value, old in zip(trained.parameters(), before.parameters(), strict=True):
        assert value.requires_grad
        assert value.grad is not None
        assert torch.equal(value.grad, old.grad)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in trained.modules())


def test_data_only_reports(result: acq.Result, trained: nn.Module, tmp_path: Path) -> None:
    """Without labelled images the student is the same bit for bit, and accuracy is not known."""
    assert result.folder is not None
    blind = acq.quantize(trained, input_size=SIZE, mean=MEAN, std=STD, out=tmp_path / "run", settings=SETTINGS)
    weights = (tmp_path / "run" / "student.safetensors").read_bytes()
    assert weights == (result.folder / "student.safetensors").read_bytes()
    assert blind.summary["top1"] is None
    assert blind.summary["teacher_top1"] is None
