"""Nothing is shown within the block, and everything behind it."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

from acq.core.quiet import quietly


def test_prints_logs_and_warnings_are_suppressed(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where warnings are errors."""
    with quietly():
        print("out")
        print("err", file=sys.stderr)
        logging.getLogger("library").error("log")
        warnings.warn("careful", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_an_error_passes_and_logs_are_restored() -> None:
    """The level of logging is as before."""
    before = logging.root.manager.disable
    with pytest.raises(ValueError, match="wrong"), quietly():
        raise ValueError("wrong")
    assert logging.root.manager.disable == before
