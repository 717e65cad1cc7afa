from __future__ import annotations

import pytest

from acq.errors import first_line, nearest


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("restnet20", ["resnet20", "vgg"], " (did you mean 'resnet20'?)"),
        ("steps", iter(["step", "batch"]), " (did you mean 'step'?)"),
        ("conv", ["conv1", "conv12"], " (did you mean 'conv1' or 'conv12'?)"),
        ("conv", ["conv1", "conv2", "conv3", "conv4"], " (did you mean 'conv4', 'conv3' or 'conv2'?)"),
        ("q", ["resnet20", "vgg"], ""),
        ("", ["resnet20"], ""),
        ("resnet", [], ""),
    ],
)
def test_a_misspelt_name_gets_up_to_three_close_ones(name: str, known: list[str], hint: str) -> None:
    """The closest name comes first; without a close name there is no hint."""
    assert nearest(name, known) == hint


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (ValueError("  one\ntwo"), "one", "ValueError: one"),
        (KeyError("a"), "'a'", "KeyError: 'a'"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError("x" * 300), "x" * 200, "ValueError: " + "x" * 200),
    ],
)
def test_an_exception_becomes_one_short_line(error: Exception, line: str, typed: str) -> None:
    """The first line of the message, at most 200 characters; the type alone where there is no message."""
    assert first_line(error) == line
    assert first_line(error, typed=True) == typed
