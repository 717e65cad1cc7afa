"""Packages of the extras, which may be absent."""

from __future__ import annotations

import importlib.util

from acq.errors import RequestError

_ONNX = ("onnx", "onnxscript", "onnxruntime")


def missing_package() -> str | None:
    """A package of the extra ``onnx`` that is not installed; None where all are."""
    return next((name for name in _ONNX if importlib.util.find_spec(name) is None), None)


def require_onnx() -> None:
    """Check that the extra ``onnx`` is installed.

    Raises:
        RequestError: A package is missing.
    """
    missing = missing_package()
    if missing is not None:
        raise RequestError(f"ONNX files need {missing}; install it with pip install 'acquant[onnx]'")
