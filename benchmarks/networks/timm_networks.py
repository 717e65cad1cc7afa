"""Networks of timm 1.0.31, without trained weights."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import nn

VERSION = "1.0.31"
_MISSING = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"  # of operators that no network here uses


def timm(name: str, **arguments: Any) -> partial[nn.Module]:
    """A function that builds a network of timm with 10 classes."""
    return partial(_built, name, {"num_classes": 10, **arguments})


def of_class(path: str, *args: Any, **arguments: Any) -> partial[nn.Module]:
    """A function that builds a class of ``timm.models`` with 10 classes, such as ``densenet.DenseNet``.

    Arguments that are texts name other classes of the same module.
    """
    return partial(_of_class, path, args, {"num_classes": 10, **arguments})


def _built(name: str, arguments: dict[str, Any]) -> nn.Module:
    return _library("timm").create_model(name, pretrained=False, **arguments)


def _of_class(path: str, args: tuple[Any, ...], arguments: dict[str, Any]) -> nn.Module:
    _library("timm")
    module, _, name = path.rpartition(".")
    library = _library(f"timm.models.{module}")
    classes = {key: getattr(library, value) for key, value in arguments.items() if isinstance(value, str)}
    return getattr(library, name)(*args, **{**arguments, **classes})


def _library(name: str) -> Any:
    """A module of timm, also where torchvision was built for another torch and lacks its own operators."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _MISSING)
    return importlib.import_module(name)
