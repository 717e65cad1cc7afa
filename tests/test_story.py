"""One run from a network that somebody trained to a student that is loaded and evaluated, as a user sees it."""

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
    "images": {"count": 64, "batch": 32, "steps": 6},
    "calibration": {"images": 32},
    "student": {"steps": 8, "batch": 16, "renew_every": 3, "renew_count": 16},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.25)
COST = {"seconds", "peak_memory_mb"}


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
def quantize(trained: nn.Module) -> Callable[..., acq.Result]:
    """From the network to a folder, with changes to settings and options."""

    def story(out: Path, data: Path | None = None, **changes: Any) -> acq.Result:
        known = {"input_size": SIZE, "mean": MEAN, "std": STD}
        return acq.quantize(trained, **known, out=out, data=data, settings={**SETTINGS, **changes}, progress=False)

    return story


@pytest.fixture(scope="module")
def before(trained: nn.Module) -> nn.Module:
    """A copy of the network with its gradients and modes, from before the run."""
    model = copy.deepcopy(trained)
    for value, old in zip(model.parameters(), trained.parameters(), strict=True):
        value.grad = None if old.grad is None else old.grad.clone()
    return model


@pytest.fixture(scope="module")
def folder(
    quantize: Callable[..., acq.Result], before: nn.Module, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return tmp_path_factory.mktemp("story") / "run"


@pytest.fixture(scope="module")
def result(quantize: Callable[..., acq.Result], folder: Path, data: Path) -> acq.Result:
    """The run, evaluated on labelled images."""
    return quantize(folder, data)


def test_the_summary_is_that_of_the_folder(result: acq.Result, folder: Path) -> None:
    """Result and file have the same figures, among them the steps that were done."""
    assert result.folder == folder
    assert json.loads((folder / "summary.json").read_text()) == result.summary
    assert result.summary["steps"] == {"generator": 20, "images": 12, "student": 8}


def test_the_student_is_nearly_as_good_as_the_teacher(result: acq.Result) -> None:
    """At 4 bits and without a training image, the student is right on images of the kind the teacher knows."""
    assert result.summary["teacher_top1"] > 90
    assert result.summary["top1"] > result.summary["teacher_top1"] - 20
    assert result.summary["agreement"] > 70


def test_the_saved_student_is_the_trained_one(result: acq.Result, folder: Path) -> None:
    """Loaded without the network that it came from, it gives the same logits, bit for bit."""
    student = acq.load(folder)
    images = normalised(patches(50, 7)[0])
    with torch.no_grad():
        assert torch.equal(student(images), result.student(images))
    assert not student.training
    assert student.preprocessing == acq.Preprocessing(SIZE, MEAN, STD)


def test_evaluation_agrees_with_the_summary(result: acq.Result, folder: Path, trained: nn.Module, data: Path) -> None:
    """The student in hand, the one in the folder and the teacher have the reported accuracy."""
    for student in (result.student, folder):
        assert acq.evaluate(student, data) == pytest.approx(result.summary["top1"], abs=0.01)
    preprocessing = acq.Preprocessing(SIZE, MEAN, STD)
    assert acq.evaluate(trained, data, preprocessing=preprocessing) == pytest.approx(result.summary["teacher_top1"])


def test_one_seed_gives_one_student_and_data_only_reports(
    result: acq.Result, folder: Path, quantize: Callable[..., acq.Result], tmp_path: Path
) -> None:
    """The same request without labelled images gives the same bytes and figures, but no accuracy."""
    torch.manual_seed(99)
    again = quantize(tmp_path / "again")
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == (folder / "student.safetensors").read_bytes()
    of_data = {"test_images", "teacher_top1", "top1", "images_lost", "images_gained"}
    for name in result.summary.keys() - COST - of_data:
        assert again.summary[name] == result.summary[name], name
    assert {again.summary[name] for name in of_data} == {None}


def test_another_seed_gives_another_student(
    folder: Path, result: acq.Result, quantize: Callable[..., acq.Result], tmp_path: Path
) -> None:
    """Everything random follows the seed."""
    quantize(tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "student.safetensors").read_bytes() != (folder / "student.safetensors").read_bytes()


def test_the_network_is_left_as_it_was(result: acq.Result, trained: nn.Module, before: nn.Module) -> None:
    """Modes, weights, statistics, counters and gradients of the user's module survive a whole run."""
    assert [part.training for part in trained.modules()] == [part.training for part in before.modules()]
    for name, value in before.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name
    for value, old in zip(trained.parameters(), before.parameters(), strict=True):
        assert value.requires_grad
        assert value.grad is not None
        assert torch.equal(value.grad, old.grad)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in trained.modules())
