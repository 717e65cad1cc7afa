"""Other people's networks: torchvision, timm, and any importable callable."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from acq.core.values import Preprocessing
from acq.errors import RequestError, nearest

Arguments = Mapping[str, Any]


def from_torchvision(name: str, arguments: Arguments, pretrained: bool) -> nn.Module:
    """A torchvision classifier, with its default weights where ``pretrained``.

    Raises:
        RequestError: torchvision cannot be imported, or does not build this network.
    """
    library = _library("torchvision.models", "torchvision")
    _check_known("torchvision", name, library.list_models())
    weights = {"weights": "DEFAULT" if pretrained else None}
    return _call(f"torchvision:{name}", library.get_model, {"name": name, **weights, **arguments})


def from_timm(name: str, arguments: Arguments, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    """A timm classifier and, where its weights are timm's own, the preprocessing that they were trained with.

    Raises:
        RequestError: timm cannot be imported, or does not build this network.
    """
    library = _library("timm", "timm")
    _check_known("timm", name.split(".")[0], library.list_models())
    settings = {"model_name": name, "pretrained": pretrained, **arguments}
    model = _call(f"timm:{name}", library.create_model, settings)
    facts = getattr(model, "pretrained_cfg", None)
    if not settings["pretrained"] or not isinstance(facts, Mapping):
        return model, None
    return model, Preprocessing(tuple(facts["input_size"]), tuple(facts["mean"]), tuple(facts["std"]))


def from_callable(reference: str, arguments: Arguments) -> nn.Module:
    """What ``package.module:callable`` returns, or the module that it names; the current folder is
    importable.

    Raises:
        RequestError: there is no such module or callable, it fails, or it returns no ``nn.Module``.
    """
    path, _, attribute = reference.partition(":")
    if not path:
        raise RequestError(f"{reference!r} names no module; give package.module:callable")
    module = _user_module(path)
    if not hasattr(module, attribute):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RequestError(f"{path!r} has no {attribute!r}{nearest(attribute, known)}; give package.module:callable")
    build = getattr(module, attribute)
    if isinstance(build, nn.Module) and not arguments:
        return build
    if isinstance(build, nn.Module) or not callable(build):
        raise RequestError(f"{reference} is a {type(build).__name__} and takes no arguments; give a callable")
    return _call(reference, build, arguments)


def build(name: str, callable_: Callable[..., Any], arguments: Arguments) -> nn.Module:
    """The network that a callable of this package makes from ``--model-args``.

    Raises:
        RequestError: the arguments are not the callable's, or it fails.
    """
    return _call(name, callable_, arguments)


def _library(module: str, package: str) -> ModuleType:
    """Import at the time of use: neither library can be installed beside every build of torch."""
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, package):
            raise RequestError(f"{package} cannot be imported: {describe(error)}; reinstall it") from error
        raise RequestError(
            f"{package} is not installed; `pip install {package}` "
            "(in an environment of its own: it may bring another build of torch)"
        ) from error
    except Exception as error:  # a build for another torch raises RuntimeError, OSError or worse
        raise RequestError(
            f"{package} cannot be imported: {describe(error)}; install the build that fits this torch"
        ) from error


def _check_known(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise RequestError(f"{library} has no network {name!r}{nearest(name, known)}; see {library}'s list_models()")


def _user_module(path: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        # stays there, as with `python -m`: the network's own code may import more when it runs
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise RequestError(f"importing {path!r} failed: {describe(error)}") from error
        raise RequestError(
            f"there is no module {error.name!r}{nearest(path, _siblings(path, folder))}; "
            "give package.module:callable, importable from the current folder"
        ) from error
    except (Exception, SystemExit) as error:
        raise RequestError(f"importing {path!r} failed: {describe(error)}") from error


def _siblings(path: str, folder: str) -> list[str]:
    """Names of modules beside the one that is not there."""
    package = path.rpartition(".")[0]
    parent = sys.modules.get(package)
    places = list(parent.__path__) if parent is not None and hasattr(parent, "__path__") else [folder]
    prefix = f"{package}." if parent is not None else ""
    return [prefix + module.name for module in pkgutil.iter_modules(map(str, map(Path, places)))]


def _call(name: str, build: Callable[..., Any], arguments: Arguments) -> nn.Module:
    _check_arguments(name, build, arguments)
    try:
        with redirect_stdout(sys.stderr):  # what the network's code prints must not mix with a JSON answer
            model = build(**arguments)
    except (Exception, SystemExit) as error:
        raise RequestError(f"{name} failed: {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"{name} returns a {type(model).__name__}, not an nn.Module; give one that builds it")
    return model


def _check_arguments(name: str, build: Callable[..., Any], arguments: Arguments) -> None:
    """Tell wrong ``--model-args`` from a ``TypeError`` inside the callable."""
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # some callables of C have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        wrong = next((key for key in arguments if key not in signature.parameters), "")
        hint = nearest(wrong, signature.parameters)
        raise RequestError(f"{name}: {error}{hint}; it takes {signature}, give --model-args") from error


def describe(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"
