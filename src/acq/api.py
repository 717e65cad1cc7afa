"""The public verbs of the library, in plain Python values: quantize, evaluate, load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from acq import artifact
from acq.config import Config
from acq.data import batches, read
from acq.errors import RequestError
from acq.evaluate import accuracy
from acq.flow import Preprocessing
from acq.recipe import Request, Result, Watch, run
from acq.student import Student
from acq.trace import classes_of, trace
from acq.zoo import preprocessing_of


def quantize(
    model: nn.Module,
    *,
    input_size: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bits: str | None = None,
    out: str | Path | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Result:
    """Quantize a trained classifier without its training data.

    ``input_size`` is (C, H, W); ``mean`` and ``std`` are those of the network's normalisation of pixels in [0, 1]
    (ImageNet's where not given, for three channels). ``bits`` are such as ``"w4a4"``, the default. ``settings`` are
    nested as in a configuration file, for example ``{"placement": "relu-only", "student": {"steps": 1000}}``. ``data``
    (an ``.npz`` or a folder of classes) is read at the end, to report. ``model`` is left exactly as it was.

    Raises:
        RequestError: what was asked for cannot be done; nothing was written.
    """
    request = Request(
        model,
        preprocessing_of(input_size, mean, std),
        Config.create(preset, settings or {}, {"bits": bits} if bits else {}),
        origin={"model": f"{type(model).__module__}:{type(model).__qualname__}"},
    )
    return run(
        request,
        None if out is None else Path(out),
        data=None if data is None else Path(data),
        resume=resume,
        overwrite=overwrite,
        watch=watch,
    )


def evaluate(
    network: nn.Module,
    data: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> float:
    """Top-1 accuracy in percent of a student, or of any classifier with its ``preprocessing``, on labelled images.

    Raises:
        RequestError: the data does not fit the network, or its preprocessing is not known.
    """
    if preprocessing is None and isinstance(network, Student):
        preprocessing = network.preprocessing
    if preprocessing is None:
        raise RequestError("how images are normalised for this network is not known; give preprocessing")
    device = next(network.parameters()).device
    known = network.classes if isinstance(network, Student) else None
    images = read(
        Path(data),
        input_size=preprocessing.input_size,
        classes=known or classes_of(trace(network, preprocessing.input_size)),
        limit=limit,
    )
    return accuracy(network, batches(images, preprocessing), device)


def load(run: str | Path) -> Student:
    """The student of a finished run folder, without the network that it came from.

    Raises:
        RequestError: there is none, or a file is damaged.
    """
    return artifact.load(Path(run)).eval()
