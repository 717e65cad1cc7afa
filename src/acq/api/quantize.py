"""Quantize a network, or look at what would become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from acq.config import Config
from acq.core.values import Preprocessing
from acq.recipe import Prepared, Request, Result, prepare
from acq.recipe import quantize as run_recipe
from acq.runs.progress import watching
from acq.runs.session import Session, Watch
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
    seed: int | None = None,
    device: str | None = None,
    data: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
    tensorboard: bool = False,
) -> Result:
    """Quantize a trained classifier without its training data. The model itself does not change.

    Args:
        model: A classifier with batch normalization.
        input_size: Channels, height and width of its images.
        mean: Of its normalisation of pixels in [0, 1], per channel; ImageNet's for three channels if not given.
        std: As ``mean``.
        bits: Such as ``"w4a4"``, the default.
        out: The run folder; nothing is written without it.
        preset: ``fast``, ``default``, ``best`` or ``gdfq``.
        settings: Nested as in a configuration file, such as ``{"student": {"steps": 1000}}``.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        data: Labelled images, an ``.npz`` file or a folder of classes. They only report accuracy, at the end.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        progress: Show progress on standard error.
        watch: Called with every record.
        tensorboard: Write to ``out/tensorboard`` (extra ``tensorboard``).

    Returns:
        The student, the figures of the run and the run folder.

    Raises:
        RequestError: The request cannot be carried out; nothing was written.
    """
    known = preprocessing_of(input_size, mean, std)
    given = {"bits": bits, "seed": seed, "device": device}
    config = Config.create(preset, settings or {}, {key: value for key, value in given.items() if value is not None})
    origin = {"model": f"{type(model).__module__}:{type(model).__qualname__}"}
    request = Request(model, known, config, origin)
    with watching(Console(stderr=True)) if progress else nullcontext() as bars:
        watches = tuple(each for each in (bars, watch) if each is not None)
        folder = None if out is None else Path(out)
        session = Session(folder, resume=resume, overwrite=overwrite, watches=watches, tensorboard=tensorboard)
        return run_recipe(request, session, None if data is None else Path(data))


def inspect(model: nn.Module, preprocessing: Preprocessing, config: Config | None = None) -> Prepared:
    """What would become of every operator of a network; nothing is trained.

    Args:
        model: A classifier with batch normalization.
        preprocessing: Of its images.
        config: The settings; the defaults if not given.

    Returns:
        The run before its first step. ``print(prepared.training.context.student.plan)`` shows the plan.
    """
    return prepare(Request(model, preprocessing, config or Config.create(), {}))
