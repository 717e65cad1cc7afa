"""The recipes: networks without batch norms, CIFAR-10, and training that continues where it was interrupted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from acq.core.values import Preprocessing
from acq.files.images import read
from acq.network.operators import VOCABULARY, operator_of
from acq.network.structure import structure_of
from acq.network.trace import trace

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = ("groupnorm_resnet", "norm_free_resnet", "vit", "convnext")
Script = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """``script("name")`` is a file of recipes/."""
    monkeypatch.syspath_prepend(RECIPES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == RECIPES:
            del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder like the npm package, with 8 images per sheet."""
    folder, rng = tmp_path / "package", np.random.default_rng(0)
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        Image.fromarray(rng.integers(0, 256, (8, 1024, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps([i % 10 for i in range(40)]))
    (folder / "test_lables.json").write_text(json.dumps(list(range(8))))
    return folder


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_small_and_store_no_statistics(script: Script, name: str) -> None:
    """No buffer holds statistics, and the planner knows all operators but norms within an image."""
    network = script("networks").NETWORKS[name]()
    assert not list(network.buffers())
    assert 2e5 < sum(weights.numel() for weights in network.parameters()) < 1e6
    graph = trace(network, (3, 32, 32))
    structure = structure_of(graph)
    assert not structure.normalised
    assert structure.answer.output.whole is not None
    assert structure.answer.output.whole.answers == 10
    assert {operator_of(node) for node in graph.graph.nodes if node.op == "call_function"} <= VOCABULARY


def test_standardised_weights_are_constants_of_the_graph(script: Script) -> None:
    """Traced filters have mean 0 and the variance that the network promises, whatever the stored weights are."""
    networks = script("networks")
    network = networks.norm_free_resnet()
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(3)
    graph = trace(network, (3, 32, 32))
    weight = graph.get_buffer("1.conv2.weight")
    expected = networks.RELU_GAIN * 4 / weight[0].numel() ** 0.5  # gains are 1 + 3
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(len(weight)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        weight.std((1, 2, 3), correction=0), torch.full((len(weight),), expected), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_ends_as_a_whole_one(script: Script, tmp_path: Path, optimizer: str) -> None:
    """Bit for bit, after a stop behind each epoch."""
    cifar10 = script("cifar10")
    settings = cifar10.Settings(epochs=3, batch=8, peak=0.01, optimizer=optimizer)
    images, target = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    whole = cifar10.Training(small(), settings, 2)
    losses = list(whole.run(images, target))
    for epoch in range(3):
        part = cifar10.Training(small(), settings, 2)
        assert next(part.run(images, target, tmp_path / "state.pt")) == losses[epoch]
    assert part.epoch == 3
    for expected, found in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_a_training_of_other_settings_is_not_continued(script: Script, tmp_path: Path) -> None:
    cifar10 = script("cifar10")
    settings = cifar10.Settings(epochs=2, batch=8)
    images, target = torch.randn(8, 3, 32, 32), torch.arange(8)
    next(cifar10.Training(small(), settings, 1).run(images, target, tmp_path / "state.pt"))
    other = cifar10.Training(small(), replace(settings, seed=1), 1)
    with pytest.raises(SystemExit, match="other settings"):
        next(other.run(images, target, tmp_path / "state.pt"))


def test_crops_come_from_their_images(script: Script) -> None:
    """Each is a window of its padded image, or the mirror of one."""
    padded = torch.arange(2 * 3 * 10 * 10.0).reshape(2, 3, 10, 10)
    index = torch.arange(2).repeat(20)
    crops = script("cifar10").crops_and_flips(padded, index, 8, torch.Generator().manual_seed(0))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # [2, 3, 3, 3, 8, 8]
    seen = set()
    for crop, of in zip(crops, index, strict=True):
        places = [(i, j, flip) for i in range(3) for j in range(3) for flip in (False, True)]
        found = [p for p in places if torch.equal(crop.flip(2) if p[2] else crop, windows[of, :, p[0], p[1]])]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 12


@pytest.mark.parametrize("more", [(), ("--float32",)])
def test_a_recipe_writes_weights_figures_and_test_images(
    script: Script, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """The files are what ``acq`` reads, and the state of the training is gone."""
    recipe, networks = script("train_cifar10"), script("networks")
    monkeypatch.setitem(networks.NETWORKS, "vit", small)
    monkeypatch.setitem(recipe.SETTINGS, "vit", replace(recipe.SETTINGS["vit"], batch=16))
    out, test = tmp_path / "out", tmp_path / "test.npz"
    recipe.main(["vit", "--images", str(package), "--out", str(out), "--epochs", "2", "--test", str(test), *more])
    assert sorted(file.name for file in out.iterdir()) == ["training.json", "weights.safetensors"]
    network = small()
    network.load_state_dict(load_file(out / "weights.safetensors"))
    figures = json.loads((out / "training.json").read_text())
    output = structure_of(trace(network, (3, 32, 32))).answer.output
    labelled = read(test, preprocessing=Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), output=output)
    hits = script("cifar10").hits(network, labelled.images, labelled.labels)
    assert figures["top1"] == round(100 * hits.mean(), 2)
    assert (figures["epochs"], figures["batch"], figures["bfloat16"], len(hits)) == (2, 16, not more, 8)
