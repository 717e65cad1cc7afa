"""Networks by name: built in, from torchvision or timm, or from the user's own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from acq.core.values import Preprocessing
from acq.errors import RequestError, nearest
from acq.zoo.checkpoints import apply_state, load_state
from acq.zoo.loaders import build, from_callable, from_timm, from_torchvision
from acq.zoo.registry import BUILTINS, IMAGENET_MEAN, IMAGENET_STD, Builtin

SMALLEST = 8  # pixels a side


@dataclass(frozen=True)
class Network:
    """A classifier in eval mode, on the CPU, with its weights; ``name`` is what was asked for.

    ``preprocessing_given`` is False where mean and std are ImageNet's by assumption, which the user should be
    told.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    preprocessing_given: bool


@dataclass(frozen=True)
class Facts:
    """A built-in network in short; ``source`` says where its weights come from."""

    name: str
    input_size: tuple[int, int, int]
    classes: int
    parameters: int
    source: str


def builtin_names() -> list[str]:
    """The names of the built-in networks."""
    return list(BUILTINS)


def facts() -> list[Facts]:
    """A line a built-in network, for ``acq models``."""
    return [
        Facts(name, entry.preprocessing.input_size, entry.classes, entry.parameters, entry.source)
        for name, entry in BUILTINS.items()
    ]


def sample_of(name: str) -> Path | None:
    """The ``.npz`` of test images that is bundled with a network, if there is one."""
    entry = BUILTINS.get(name)
    return entry.sample if entry is not None else None


def resolve(
    model: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Network:
    """The network that ``model`` names, with its weights and its preprocessing.

    ``model`` is a built-in name, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``, called
    with the keyword ``arguments``. A ``checkpoint`` takes the place of the weights that it would come with.
    What is not given of ``input_size`` (C, H, W), ``mean`` and ``std`` is what the weights are known to need;
    where that is unknown the size must be given, and three channels are taken to be normalised as for
    ImageNet.

    Raises:
        RequestError: there is no such network, it cannot be built, its checkpoint does not fit, or the
            preprocessing is incomplete or wrong.
    """
    _check_both_or_neither(mean, std)  # before a network is built or downloaded
    entry, source = _entry(model), model.partition(":")[0]
    if entry is None and source != "timm":
        preprocessing_of(input_size, mean, std, None)
    module, known = _load(model, entry, arguments or {}, checkpoint)
    preprocessing = preprocessing_of(input_size, mean, std, known)
    if checkpoint is not None:
        apply_state(module, load_state(checkpoint), checkpoint)
    return Network(module.eval(), preprocessing, model, mean is not None or known is not None)


def _entry(model: str) -> Builtin | None:
    if model not in BUILTINS and ":" not in model:
        raise RequestError(
            f"there is no built-in network {model!r}{nearest(model, BUILTINS)}; "
            f"give one of {', '.join(BUILTINS)}, torchvision:NAME, timm:NAME or package.module:callable"
        )
    return BUILTINS.get(model)


def _load(
    model: str, entry: Builtin | None, arguments: Mapping[str, Any], checkpoint: Path | None
) -> tuple[nn.Module, Preprocessing | None]:
    """The network and the preprocessing that it is known to need."""
    if entry is not None:
        module = build(model, entry.build, arguments)
        if checkpoint is None:
            weights = entry.weights()
            apply_state(module, load_state(weights), weights)
        return module, entry.preprocessing
    source, _, name = model.partition(":")
    if source == "torchvision":
        return from_torchvision(name, arguments, pretrained=checkpoint is None), None
    if source == "timm":
        return from_timm(name, arguments, pretrained=checkpoint is None)
    return from_callable(model, arguments), None


def preprocessing_of(
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    known: Preprocessing | None = None,
) -> Preprocessing:
    """What is given, completed by what is ``known``; three channels are otherwise normalised as for ImageNet.

    Raises:
        RequestError: it is incomplete, or a value cannot be right.
    """
    _check_both_or_neither(mean, std)
    size = input_size if input_size is not None else known.input_size if known is not None else None
    if size is None:
        raise RequestError("the size of the images is not known; give --input-size, such as 3,224,224")
    if len(size) != 3 or not all(isinstance(number, int) for number in size) or size[0] < 1 or min(size[1:]) < SMALLEST:
        raise RequestError(
            f"--input-size is {','.join(map(str, size))}; give channels, height and width, such as 3,32,32, "
            f"with at least {SMALLEST} pixels a side"
        )
    channels, height, width = size
    if mean is None or std is None:
        if known is None and channels != len(IMAGENET_MEAN):
            raise RequestError(f"how {channels} channels are normalised is not known; give --mean and --std")
        mean, std = (known.mean, known.std) if known is not None else (IMAGENET_MEAN, IMAGENET_STD)
    _check_normalisation(mean, std, channels)
    return Preprocessing((channels, height, width), tuple(map(float, mean)), tuple(map(float, std)))


def _check_both_or_neither(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    if (mean is None) != (std is None):
        raise RequestError(f"--{'std' if std is None else 'mean'} is missing; give --mean and --std together")


def _check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        shown = ",".join(f"{value:g}" for value in values)
        if len(values) != channels:
            raise RequestError(f"--{name} is {shown}; give {channels} values, one a channel")
        if not all(map(math.isfinite, values)):
            raise RequestError(f"--{name} is {shown}; give finite values")
    if max(mean) > 1:
        raise RequestError(f"--mean is above 1 ({max(mean):g}); pixels are in [0, 1], divide mean and std by 255")
    if min(std) <= 0:
        raise RequestError(f"--std has {min(std):g}; give values above 0")
