"""Networks from outside this package: torchvision, timm, and any importable callable."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

from torch import nn

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError, first_line, nearest
from acq.files.framing import INTERPOLATIONS
from acq.network.modules import as_module

Arguments = Mapping[str, Any]

_REFERENCE = "give package.module:callable"


def from_torchvision(name: str, arguments: Arguments, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    """Build a torchvision classifier.

    Args:
        name: Its name in torchvision.
        arguments: Keyword arguments; these take precedence over ``pretrained``.
        pretrained: Load the default weights.

    Returns:
        The classifier, and the preprocessing of its default weights or None with others.

    Raises:
        RequestError: torchvision cannot be imported, or does not build this network.
    """
    library = _library("torchvision.models", "torchvision")
    _check_known("torchvision", name, library.list_models())
    settings = {"name": name, "weights": "DEFAULT" if pretrained else None, **arguments}
    model = build(f"torchvision:{name}", library.get_model, settings)
    if settings["weights"] != "DEFAULT":
        return model, None
    return model, _preprocessing_of_torchvision(library.get_model_weights(name).DEFAULT.transforms())


def _preprocessing_of_torchvision(transforms: Any) -> Preprocessing | None:
    """Of its transforms for classifiers; those of segmenters, detectors and films have no crop, or one of two sides."""
    crop, resize = (tuple(getattr(transforms, name, None) or ()) for name in ("crop_size", "resize_size"))
    if len(crop) != 1 or len(resize) != 1:
        return None
    interpolation = transforms.interpolation.value
    framing = Framing(resize[0], interpolation) if interpolation in INTERPOLATIONS else None
    return Preprocessing((3, crop[0], crop[0]), tuple(transforms.mean), tuple(transforms.std), framing)


def from_timm(name: str, arguments: Arguments, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    """Build a timm classifier.

    Args:
        name: Its name in timm, with or without the tag of its weights.
        arguments: Keyword arguments; these take precedence over ``pretrained``.
        pretrained: Load the default weights.

    Returns:
        The classifier, and the preprocessing of its weights or None without weights of timm.

    Raises:
        RequestError: timm cannot be imported, or does not build this network.
    """
    library = _library("timm", "timm")
    _check_known("timm", name.split(".")[0], library.list_models())
    settings = {"model_name": name, "pretrained": pretrained, **arguments}
    model = build(f"timm:{name}", library.create_model, settings)
    facts = getattr(model, "pretrained_cfg", None)
    if not settings["pretrained"] or not isinstance(facts, Mapping):
        return model, None
    return model, Preprocessing(
        tuple(facts["input_size"]), tuple(facts["mean"]), tuple(facts["std"]), _framing_of_timm(facts)
    )


def _framing_of_timm(facts: Mapping[str, Any]) -> Framing | None:
    """Of timm's pictures for evaluation, with the documented arithmetic of its ``crop_pct``."""
    interpolation, share = facts.get("interpolation"), facts.get("crop_pct")
    is_crop = facts.get("crop_mode", "center") == "center" and share is not None and 0 < share <= 1
    if interpolation not in INTERPOLATIONS or not is_crop:
        return None
    return Framing(math.floor(min(facts["input_size"][1:]) / share), interpolation)


def from_callable(reference: str, arguments: Arguments) -> nn.Module:
    """Return the network that a callable builds, or a network that is ready in a module.

    Args:
        reference: ``package.module:name``; the current folder is importable.
        arguments: Keyword arguments of the callable.

    Raises:
        RequestError: There is no such module or name, the callable fails, or it returns no ``nn.Module``.
    """
    path, _, attribute = reference.partition(":")
    if not path:
        raise RequestError(f"{reference!r} names no module; {_REFERENCE}")
    module = _user_module(path)
    if not hasattr(module, attribute):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RequestError(f"{path!r} has no {attribute!r}{nearest(attribute, known)}; {_REFERENCE}")
    builder = as_module(getattr(module, attribute))
    if isinstance(builder, nn.Module) and not arguments:
        return builder
    if isinstance(builder, nn.Module) or not callable(builder):
        raise RequestError(f"{reference} is a {type(builder).__name__} and takes no arguments; give a callable")
    return build(reference, builder, arguments)


def build(name: str, builder: Callable[..., Any], arguments: Arguments) -> nn.Module:
    """Call ``builder`` with ``--model-args``, and take what it builds out of wrappers such as ``DataParallel``.

    Args:
        name: The network's name, for messages.
        builder: Returns the network.
        arguments: Keyword arguments of ``builder``.

    Raises:
        RequestError: The arguments do not fit, ``builder`` fails, or it returns no ``nn.Module``.
    """
    _check_arguments(name, builder, arguments)
    try:
        with redirect_stdout(sys.stderr):  # output of the network's code must not mix with JSON results
            model = as_module(builder(**arguments))
    except RequestError:
        raise
    except (Exception, SystemExit) as error:
        raise RequestError(f"{name} failed: {first_line(error, typed=True)}") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"{name} returns a {type(model).__name__}, not an nn.Module; give a callable that builds it")
    return model


def _library(module: str, package: str) -> ModuleType:
    """Import when it is used, because not every build of torch has a fitting build of each library."""
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, package):
            raise RequestError(
                f"{package} cannot be imported: {first_line(error, typed=True)}; reinstall it"
            ) from error
        raise RequestError(
            f"{package} is not installed; install it with pip install {package} "
            "(in a separate environment, because it may install another build of torch)"
        ) from error
    except Exception as error:  # a build for another torch raises RuntimeError, OSError and others
        raise RequestError(
            f"{package} cannot be imported: {first_line(error, typed=True)}; install the build that fits this torch"
        ) from error


def _check_known(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise RequestError(f"{library} has no network {name!r}{nearest(name, known)}; see {library}'s list_models()")


def _user_module(path: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        # it stays there, as with `python -m`: the network's code may import more when it runs
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise RequestError(_import_failed(path, error)) from error
        raise RequestError(
            f"there is no module {error.name!r}{nearest(path, _siblings(path, folder))}; "
            f"{_REFERENCE}, importable from the current folder"
        ) from error
    except (Exception, SystemExit) as error:
        raise RequestError(_import_failed(path, error)) from error


def _import_failed(path: str, error: BaseException) -> str:
    return f"importing {path!r} failed: {first_line(error, typed=True)}"


def _siblings(path: str, folder: str) -> list[str]:
    """Names of the modules that are in the folder of a missing one."""
    package = path.rpartition(".")[0]
    parent = sys.modules.get(package)
    if parent is None or not hasattr(parent, "__path__"):
        return [module.name for module in pkgutil.iter_modules([folder])]
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(list(parent.__path__))]


def _check_arguments(name: str, builder: Callable[..., Any], arguments: Arguments) -> None:
    """Find wrong ``--model-args`` before the call, where a ``TypeError`` could come from inside the callable."""
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # some callables of C have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        wrong = next((key for key in arguments if key not in signature.parameters), "")
        hint = nearest(wrong, signature.parameters)
        raise RequestError(f"{name}: {error}{hint}; it takes {signature}, give --model-args") from error
