"""Networks by name: built in, from torchvision or timm, or from the user's own code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from acq.core.extras import require_onnx
from acq.core.file_form import FileForm
from acq.core.values import Preprocessing
from acq.errors import RequestError, nearest
from acq.network.modules import initialise, switch_to_eval
from acq.zoo.checkpoints import SUFFIXES, apply_state, load_state
from acq.zoo.loaders import build, from_callable, from_timm, from_torchvision
from acq.zoo.preprocessing import preprocessing_of, require_both_or_neither
from acq.zoo.registry import BUILTINS, Builtin

__all__ = ["Facts", "Network", "builtin_names", "facts", "looks_like_path", "preprocessing_of", "resolve", "sample_of"]

ONNX = ".onnx"


@dataclass(frozen=True)
class Network:
    """A classifier in eval mode, on the CPU, with its weights.

    Attributes:
        model: The classifier.
        preprocessing: Its input size and normalisation.
        name: The name that ``resolve`` was called with.
        preprocessing_given: False if mean and std of ImageNet are assumed; the user should know.
        form: What a program sees of the ONNX file that the network came from, if it did.
        tail: The part of that file behind the network's outputs, as the content of an ONNX file.
        class_names: Given names in class order; empty where none are given.
        known_names: As far as they are known otherwise; only those that fit what the network returns count.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    preprocessing_given: bool
    form: FileForm | None = None
    tail: bytes | None = None
    class_names: tuple[str, ...] = ()
    known_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """A built-in network in short.

    Attributes:
        name: The name.
        input_size: Channels, height and width.
        classes: Number of classes.
        parameters: Number of parameters.
        source: Where the weights come from.
    """

    name: str
    input_size: tuple[int, int, int]
    classes: int
    parameters: int
    source: str


def builtin_names() -> list[str]:
    """Return the names of the built-in networks."""
    return list(BUILTINS)


def facts() -> list[Facts]:
    """Return the facts of every built-in network, for ``acq models``."""
    return [
        Facts(name, entry.preprocessing.input_size, entry.classes, entry.parameters, entry.source)
        for name, entry in BUILTINS.items()
    ]


def sample_of(name: str) -> Path | None:
    """Return the ``.npz`` of test images that comes with a built-in network, or None."""
    entry = BUILTINS.get(name)
    return entry.sample if entry is not None else None


def looks_like_path(text: str) -> bool:
    """Return whether a MODEL argument means a file or folder, such as a run folder, and not a network."""
    rest = os.path.splitdrive(text)[1]  # the colon of a Windows drive is no colon of package.module:callable
    return text not in BUILTINS and ":" not in rest and ("/" in rest or os.sep in rest or Path(text).exists())


def resolve(
    model: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    checkpoint_key: str | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    outputs: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> Network:
    """Build the network that ``model`` names, with its weights and preprocessing.

    Args:
        model: A built-in name, an ``.onnx`` file, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``.
        arguments: Keyword arguments of the callable.
        checkpoint: A file of weights that replaces the network's own.
        checkpoint_key: The path of keys to the weights in that file, joined by dots; by default the only one that fits.
        input_size: Channels, height and width; by default what the weights are known to need.
        mean: Mean per channel, for pixels in [0, 1]; by default as known, or ImageNet's for three channels.
        std: Standard deviation per channel; as ``mean``.
        resize: The shorter side that pictures of another size get before the crop to their centre; by default as known,
            or 8/7 of the network's.
        crop: The side of that crop, which must be the network's.
        outputs: Names of values of an ONNX file at which its graph is cut; others only choose what decides.
        class_names: In class order; by default as known.

    Raises:
        RequestError: There is no such network, it cannot be built, its checkpoint does not fit, or the preprocessing
            is incomplete or wrong.
    """
    if checkpoint_key is not None and checkpoint is None:
        raise RequestError("--checkpoint-key names weights in a file; give the file as --checkpoint")
    require_both_or_neither(mean, std)  # before a network is built or downloaded
    if model.endswith(ONNX):
        if arguments or checkpoint is not None:
            raise RequestError(f"{model} has its own weights; leave out --checkpoint and --model-args")
        completed = partial(preprocessing_of, resize=resize, crop=crop)
        found = _from_onnx(model, input_size, mean, std, completed, outputs)
        return replace(found, class_names=tuple(class_names))
    entry, source = _entry(model), model.partition(":")[0]
    if entry is None and source not in ("timm", "torchvision"):
        preprocessing_of(input_size, mean, std, resize=resize, crop=crop)
    module, known = _build(model, entry, arguments or {}, checkpoint)
    preprocessing = preprocessing_of(input_size, mean, std, known, resize=resize, crop=crop)
    if checkpoint is not None:
        initialise(module, preprocessing.input_size)
        apply_state(module, load_state(checkpoint), checkpoint, checkpoint_key)
    switch_to_eval(module)
    known_names = entry.class_names if entry is not None and checkpoint is None else ()  # other weights may have others
    return Network(
        module, preprocessing, model, mean is not None or known is not None, class_names=tuple(class_names),
        known_names=known_names,
    )  # fmt: skip


def _from_onnx(
    model: str,
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    completed: Callable[..., Preprocessing],
    outputs: Sequence[str],
) -> Network:
    require_onnx()
    from acq.zoo.onnx import from_file

    def complete(size: Sequence[int], bytes_: bool) -> Preprocessing:
        channels = size[0]
        if bytes_ and mean is not None:
            raise RequestError(f"{model} takes bytes and normalises them itself; leave out --mean and --std")
        given = (mean, std) if mean is not None or not bytes_ else ((0.0,) * channels, (1 / 255,) * channels)
        return completed(size, *given)

    found = from_file(Path(model), outputs, input_size, complete)
    is_known = mean is not None or found.form.kind == "uint8"
    return Network(found.network, found.preprocessing, model, is_known, found.form, found.tail)


def _entry(model: str) -> Builtin | None:
    """The built-in network of this name, or None if the name is a reference with a colon."""
    if looks_like_path(model):
        raise RequestError(_path_message(model))
    if model not in BUILTINS and ":" not in model:
        raise RequestError(
            f"there is no built-in network {model!r}{nearest(model, BUILTINS)}; "
            f"give one of {', '.join(BUILTINS)}, torchvision:NAME, timm:NAME or package.module:callable"
        )
    return BUILTINS.get(model)


def _path_message(model: str) -> str:
    if model.endswith(SUFFIXES):
        return f"{model} is a file of weights and no network; name the network, and give the file as --checkpoint"
    if Path(model).exists():
        return f"{model} is no run folder; give a folder that acq quantize wrote, or the name of a network"
    return f"there is no run folder {model}; give a folder that acq quantize wrote, or the name of a network"


def _build(
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
        return from_torchvision(name, arguments, pretrained=checkpoint is None)
    if source == "timm":
        return from_timm(name, arguments, pretrained=checkpoint is None)
    return from_callable(model, arguments), None
