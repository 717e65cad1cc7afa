"""Quantize a network, or look at what would become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from acq.config import Config
from acq.errors import RequestError
from acq.files.class_names import checked_names
from acq.quantization.node_plan import Plan
from acq.recipe import Request, Result, prepare
from acq.recipe import quantize as run_recipe
from acq.runs.progress import watching
from acq.runs.session import Session, Watch
from acq.zoo import Network, preprocessing_of


def quantize(
    model: nn.Module | Network,
    *,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    bits: str | None = None,
    out: str | Path | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    outputs: str | int | None = None,
    output_kind: str | None = None,
    class_names: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    data: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
    tensorboard: bool = False,
    export: bool = True,
    engines: Sequence[str] = (),
) -> Result:
    """Quantize a trained classifier without its training data. The model itself does not change.

    Args:
        model: A classifier. With ``BatchNorm2d`` layers, before they are folded, the images are better. Or what
            ``acq.zoo.resolve`` found, which knows the images; made from an ONNX file, ``out/model.onnx`` replaces it.
        input_size: Channels, height and width of its images; leave it out, like mean and std, for what was found.
        mean: Of its normalisation of pixels in [0, 1], per channel; with batch norms and three channels it may be left
            out, and is then ImageNet's.
        std: As ``mean``.
        resize: The shorter side that pictures in ``data`` of another size get before the crop to their centre; by
            default 8/7 of the network's.
        bits: Such as ``"w4a4"``, the default.
        out: The run folder; nothing is written without it.
        preset: ``fast``, ``default``, ``best``, ``acq`` or ``gdfq``.
        settings: Nested as in a configuration file, such as ``{"student": {"steps": 1000}}``.
        outputs: The name or index of the returned tensor that decides, if the network returns several. Several that
            count are joined by commas.
        output_kind: ``class``, ``multilabel``, ``map``, ``sequence`` or ``values``, where shape and end do not
            say so; for several tensors joined by commas.
        class_names: In class order; folders of ``data`` may be named by them, and report and answers show them.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        data: Labelled images, an ``.npz`` file or a folder of classes. They only report accuracy, at the end.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        progress: Show progress on standard error.
        watch: Called with every record.
        tensorboard: Write to ``out/tensorboard`` (extra ``tensorboard``).
        export: Write ``out/model.onnx`` at the end (extra ``onnx``), and try at the start whether that is possible.
        engines: Names of engines on which the file must agree, beside ONNX Runtime, such as ``openvino``.

    Returns:
        The student, the figures of the run and the run folder.

    Raises:
        RequestError: The request cannot be carried out; nothing was written.
    """
    request = _request(
        model, input_size, mean, std, resize, preset, settings,
        bits=bits, outputs=outputs, output_kind=output_kind, seed=seed, device=device,
    )  # fmt: skip
    if class_names:
        request = replace(request, class_names=checked_names(class_names, "class_names"))
    with watching(Console(stderr=True)) if progress else nullcontext() as bars:
        watches = tuple(each for each in (bars, watch) if each is not None)
        folder = None if out is None else Path(out)
        session = Session(
            folder, resume=resume, overwrite=overwrite, watches=watches, tensorboard=tensorboard, export=export,
            engines=tuple(engines),
        )  # fmt: skip
        return run_recipe(request, session, None if data is None else Path(data))


def inspect(
    model: nn.Module | Network,
    *,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bits: str | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    outputs: str | int | None = None,
    output_kind: str | None = None,
) -> Plan:
    """What ``quantize`` would make of every operator of a network. Nothing is trained.

    Args:
        model: As for ``quantize``, like all other arguments.
        input_size: As for ``quantize``.
        mean: Of its normalisation.
        std: Of its normalisation.
        bits: Such as ``"w4a4"``, the default.
        preset: ``fast``, ``default``, ``best``, ``acq`` or ``gdfq``.
        settings: Nested as in a configuration file.
        outputs: As for ``quantize``.
        output_kind: As for ``quantize``.

    Returns:
        The plan; ``print`` shows it as a table.

    Raises:
        RequestError: The network cannot be quantized.
    """
    request = _request(
        model, input_size, mean, std, None, preset, settings,
        bits=bits, outputs=outputs, output_kind=output_kind, device="cpu",
    )  # fmt: skip
    return prepare(request).training.context.student.plan


def _request(
    model: nn.Module | Network,
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resize: int | None,
    preset: str,
    settings: Mapping[str, Any] | None,
    **given: Any,
) -> Request:
    config = Config.create(preset, settings or {}, {key: value for key, value in given.items() if value is not None})
    if isinstance(model, Network):
        if any(value is not None for value in (input_size, mean, std, resize)):
            raise RequestError(
                f"{model.name} was found with its images; give input_size, mean, std and resize to acq.zoo.resolve"
            )
        return Request.of(model, config, {"model": model.name})
    origin = {"model": f"{type(model).__module__}:{type(model).__qualname__}"}
    known = preprocessing_of(input_size, mean, std, resize=resize)
    return Request(model, known, config, origin, normalisation_given=mean is not None)
