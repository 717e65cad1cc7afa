"""From text of the command line to values of the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acq import api, zoo
from acq.config import Config
from acq.core.scores import KINDS, Kind
from acq.core.settings import names_of
from acq.errors import RequestError
from acq.files.class_names import read_class_names
from acq.files.documents import assignment, from_json, read_settings


def network_of(
    model: str, options: Mapping[str, Any], outputs: str | None = None, classes: Path | None = None
) -> zoo.Network:
    """The network of that name with ``network_options``; ``outputs`` and ``classes`` are as on the command line."""
    return zoo.resolve(model, outputs=names_of(outputs), class_names=class_names_of(classes), **options)


def target_of(
    target: str,
    options: Mapping[str, Any],
    outputs: str | None,
    output_kind: str | None,
    classes: Path | None,
    device: str | None,
) -> api.Target:
    """What a TARGET stands for, with ``network_options``; the other arguments are as on the command line."""
    return api.target(
        target,
        outputs=outputs,
        output_kinds=kinds_of(output_kind),
        class_names=class_names_of(classes),
        device=device or "auto",
        **options,
    )


def class_names_of(file: Path | None) -> tuple[str, ...]:
    """The names of classes in a file; none where it is not given."""
    return () if file is None else read_class_names(file)


def network_options(
    checkpoint: Path | None,
    checkpoint_key: str | None,
    model_args: str | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    resize: int | None = None,
    crop: int | None = None,
) -> dict[str, Any]:
    """The options of a network as ``acq.zoo.resolve`` takes them; None where not given."""
    return {
        "arguments": None if model_args is None else json_object(model_args),
        "checkpoint": checkpoint,
        "checkpoint_key": checkpoint_key,
        "input_size": _numbers(input_size, "--input-size", int),
        "mean": _numbers(mean, "--mean", float),
        "std": _numbers(std, "--std", float),
        "resize": resize,
        "crop": crop,
    }


def config_of(
    preset: str | None,
    config: Path | None,
    assignments: Sequence[str] | None,
    exclude: Sequence[str] | None = None,
    **given: Any,
) -> Config:
    """The settings: preset, then the file, then ``--set``, then the options that are given."""
    options = {key: _bits(key, value) for key, value in given.items() if value is not None}
    changes: list[Mapping[str, Any]] = [read_settings(config)] if config else []
    changes += map(assignment, assignments or [])
    changes += [{"layers": {pattern: "float"}} for pattern in exclude or []]
    return Config.create("default", *changes, options, {"preset": preset} if preset else {})


def data_path(data: str, model: str) -> Path:
    """The path of labelled images; ``sample`` names those that are bundled with a built-in network."""
    if data != "sample":
        return Path(data)
    sample = zoo.sample_of(model)
    if sample is None:
        raise RequestError(f"no sample is bundled with {model}; give --data an .npz or a folder of classes")
    return sample


def kinds_of(text: str | None) -> tuple[Kind, ...]:
    """The kinds in ``--output-kind``; RequestError if one is none."""
    known = {str(kind): kind for kind in KINDS}
    for name in names_of(text):
        if name not in known:
            raise RequestError(f"--output-kind {name!r} is not known; give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return tuple(known[name] for name in names_of(text))


def json_object(text: str) -> dict[str, Any]:
    """The object of a JSON text; RequestError if it is none."""
    try:
        value = from_json(text)
    except ValueError as error:
        fault = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise RequestError(f"--model-args is not JSON ({fault}); give an object such as '{{\"width\": 2}}'") from None
    if not isinstance(value, dict):
        raise RequestError("--model-args must be a JSON object of keyword arguments, such as '{\"width\": 2}'")
    return value


def _numbers(text: str | None, option: str, kind: Callable[[str], Any]) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "3,32,32" if kind is int else "0.5,0.5,0.5"
        raise RequestError(f"{option} {text!r} is not a list of numbers such as {example}") from None


def _bits(key: str, value: Any) -> Any:
    is_number = key in ("first_last_bits", "add_bits") and str(value).isdecimal()
    return int(value) if is_number else value
