"""Networks of torchvision and timm, with stand-ins for both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.zoo import resolve

SIZE = (3, 16, 16)
HALF = (0.5,) * 3


def libraries(
    monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any] | None = None, **transforms: Any
) -> list[dict[str, Any]]:
    """Stand-ins for torchvision and timm; returns the keyword arguments of their calls.

    ``cfg`` is timm's of the weights, and ``transforms`` are attributes of those of torchvision's default weights.
    """
    calls: list[dict[str, Any]] = []

    def make(**arguments: Any) -> nn.Module:
        calls.append(arguments)
        model = nn.Linear(2, 2)
        model.pretrained_cfg = cfg
        return model

    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["resnet18", "resnet50"]  # type: ignore[attr-defined]
    models.get_model = make  # type: ignore[attr-defined]
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(**transforms)))
    models.get_model_weights = lambda name: weights  # type: ignore[attr-defined]
    timm = ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "vgg11"]  # type: ignore[attr-defined]
    timm.create_model = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_torchvision_and_timm_load_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do so without a checkpoint; the user's arguments take precedence."""
    calls = libraries(monkeypatch)
    resolve("torchvision:resnet18", input_size=SIZE)
    resolve("torchvision:resnet18", input_size=SIZE, arguments={"weights": None, "num_classes": 5})
    resolve("timm:vgg11", input_size=SIZE)
    resolve("timm:resnet18.a1_in1k", input_size=SIZE)
    assert calls == [
        {"name": "resnet18", "weights": "DEFAULT"},
        {"name": "resnet18", "weights": None, "num_classes": 5},
        {"model_name": "vgg11", "pretrained": True},
        {"model_name": "resnet18.a1_in1k", "pretrained": True},
    ]


def test_a_checkpoint_replaces_a_library_s_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library's own weights are not downloaded."""
    calls = libraries(monkeypatch)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    for model in ("torchvision:resnet18", "timm:vgg11"):
        resolve(model, input_size=SIZE, checkpoint=tmp_path / "w.pt")
    assert [call.get("weights", call.get("pretrained")) for call in calls] == [None, False]


def test_timm_s_weights_set_the_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their input size, mean and std are used, but not for other weights."""
    libraries(monkeypatch, {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    network = resolve("timm:vgg11")
    assert network.preprocessing.input_size == (3, 64, 64)
    assert network.preprocessing.mean == (0.5,) * 3
    assert network.preprocessing_given
    with pytest.raises(RequestError, match="--input-size"):
        resolve("timm:vgg11", arguments={"pretrained": False})


@pytest.mark.parametrize(
    ("facts", "framing"),
    [
        ({"crop_pct": 0.875, "interpolation": "bicubic"}, Framing(73, "bicubic")),
        ({"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "center"}, Framing(64, "bilinear")),
        ({"crop_pct": 0.9, "interpolation": "nearest"}, None),
        ({"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "squash"}, None),
        ({"crop_pct": 1.5, "interpolation": "bicubic"}, None),
        ({"interpolation": "bicubic"}, None),
        ({}, None),
    ],
)
def test_timm_s_weights_set_the_framing(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], framing: Framing | None
) -> None:
    """The share of the crop gives the resized side, rounded down; what ``acq`` does not compute is not known."""
    libraries(monkeypatch, {"input_size": (3, 64, 64), "mean": HALF, "std": HALF, **facts})
    assert resolve("timm:vgg11").preprocessing.framing == framing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_torchvision_s_weights_set_the_preprocessing(monkeypatch: pytest.MonkeyPatch, interpolation: str) -> None:
    """Those of the default weights alone; a given resize keeps their interpolation."""
    how = SimpleNamespace(value=interpolation)
    libraries(monkeypatch, crop_size=[64], resize_size=[72], mean=[0.5] * 3, std=[0.5] * 3, interpolation=how)
    known = None if interpolation == "nearest" else Framing(72, interpolation)
    network = resolve("torchvision:resnet18")
    assert (network.preprocessing, network.preprocessing_given) == (Preprocessing((3, 64, 64), HALF, HALF, known), True)
    given = resolve("torchvision:resnet18", resize=80).preprocessing.framing
    assert given == Framing(80, "bilinear" if known is None else interpolation)
    for weights in (None, "IMAGENET1K_V1"):
        with pytest.raises(RequestError, match="--input-size"):
            resolve("torchvision:resnet18", arguments={"weights": weights})


@pytest.mark.parametrize(
    "transforms",
    [{}, {"resize_size": [520], "mean": HALF, "std": HALF}, {"crop_size": (112, 112), "resize_size": (128, 171)}],
    ids=["detector", "segmenter", "films"],
)
def test_other_transforms_of_torchvision_set_nothing(
    monkeypatch: pytest.MonkeyPatch, transforms: dict[str, Any]
) -> None:
    """Detectors, segmenters and networks of films take what is given."""
    libraries(monkeypatch, **transforms)
    assert resolve("torchvision:resnet18", input_size=SIZE).preprocessing.framing is None


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_an_unknown_network_of_a_library_gives_a_hint(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """The name is checked before anything is built."""
    libraries(monkeypatch)
    with pytest.raises(RequestError, match=r"did you mean 'resnet18'"):
        resolve(f"{library}:resnet81", input_size=SIZE)


class Finder:
    """Makes the import of a package raise, like a package that was built for another torch."""

    def __init__(self, package: str, error: Exception) -> None:
        self.package, self.error = package, error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise self.error


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (
            lambda name: ModuleNotFoundError(f"No module named '{name}'", name=name),
            "is not installed; install it with pip install",
        ),
        (
            lambda name: ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            "cannot be imported: .*'yaml'",
        ),
        (
            lambda name: RuntimeError("operator torchvision::nms does not exist"),
            "cannot be imported: RuntimeError",
        ),
    ],
)
def test_a_library_that_cannot_be_imported_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, library: str, make: Callable[[str], Exception], fact: str
) -> None:
    """It is absent, incomplete or built for another torch."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(library, make(library)), *sys.meta_path])
    with pytest.raises(RequestError, match=fact):
        resolve(f"{library}:resnet18", input_size=SIZE)
