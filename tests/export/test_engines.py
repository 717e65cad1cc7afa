"""Engines are known by the names of their packages."""

from __future__ import annotations

import sys

import pytest

from acq.errors import RequestError
from acq.export.engines import ENGINES, REFERENCE, installed_engines, require_engines


def test_the_reference_comes_first() -> None:
    """All engines of the development environment are installed."""
    assert next(iter(ENGINES)) == REFERENCE
    assert list(installed_engines()) == list(ENGINES)


def test_names_that_are_not_known_or_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the nearest name, or how to install it."""
    require_engines(["openvino", "onnxruntime"])
    with pytest.raises(RequestError, match=r"'openvinno' is not known \(did you mean 'openvino'\?\)"):
        require_engines(["openvinno"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert list(installed_engines()) == [REFERENCE]
    with pytest.raises(RequestError, match="openvino is not installed; install it with pip install openvino"):
        require_engines(["openvino"])
