from __future__ import annotations

from dataclasses import replace

import pytest

from acq.errors import RequestError
from acq.quantization.formats import NumberFormat


@pytest.mark.parametrize(
    ("text", "first_last_bits", "wanted"),
    [
        ("w4a4", "8", NumberFormat(4, 4, 8)),
        ("wautoa3", "same", NumberFormat(4, 3)),
        ("W3A5", "same", NumberFormat(3, 5)),
        (" w8a8 ", 4, NumberFormat(8, 8, 4)),
        ("w4", "8", NumberFormat(4, None, 8)),
        ("W8", "same", NumberFormat(8, None)),
        ("wauto", "same", NumberFormat(4, None)),
    ],
)
def test_formats_are_parsed(text: str, first_last_bits: str | int, wanted: NumberFormat) -> None:
    """Weights and activations are read in either case, and the first and last layers' bits as a number or same."""
    assert NumberFormat.parse(text, first_last_bits) == wanted


@pytest.mark.parametrize("text", ["w2", "w8", "w3a5", "w8a8"])
def test_a_format_has_the_name_from_which_it_is_parsed(text: str) -> None:
    """A format without activations names none."""
    found = NumberFormat.parse(text)
    assert found.name == text
    assert found.weights_alone == ("a" not in text)


@pytest.mark.parametrize(
    ("add_bits", "wanted"),
    [(8, NumberFormat(4, 4)), ("6", NumberFormat(4, 4, add=6)), ("same", NumberFormat(4, 4, add=None))],
)
def test_bits_of_additions_are_parsed(add_bits: str | int, wanted: NumberFormat) -> None:
    """They are 8 by default, a number, or same."""
    assert NumberFormat.parse("w4a4", "same", add_bits) == wanted


@pytest.mark.parametrize(
    ("text", "first_last_bits", "message"),
    [
        ("4", "8", "bits not understood: '4'; write .* w4a4"),
        ("w4a", "8", "w4a4"),
        ("w1a4", "8", "bits out of range: weight 1; give 2 to 8"),
        ("w9", "8", "bits out of range: weight 9; give 2 to 8"),
        ("w4a9", "8", "bits out of range: activation 9"),
        ("w4a4", "16", "bits out of range: first_last_bits 16"),
        ("w4a4", "none", "first_last_bits not understood: 'none'; give a bit-width such as 8, or same"),
    ],
)
def test_wrong_bits_are_refused(text: str, first_last_bits: str, message: str) -> None:
    """The message names the fact and the way out."""
    with pytest.raises(RequestError, match=message):
        NumberFormat.parse(text, first_last_bits)


@pytest.mark.parametrize(
    ("add_bits", "message"),
    [
        ("1", "bits out of range: add_bits 1; give 2 to 8"),
        ("all", "add_bits not understood: 'all'"),
        ("3", "add_bits 3 is below the activations' 4 bits; give at least 4, or same"),
    ],
)
def test_wrong_bits_of_additions_are_refused(add_bits: str, message: str) -> None:
    """The message speaks of the setting, also where additions have fewer bits than activations."""
    with pytest.raises(RequestError, match=message):
        NumberFormat.parse("w4a4", "same", add_bits)


@pytest.mark.parametrize("field", ["image", "nonlinearity"])
def test_every_width_is_checked(field: str) -> None:
    """Widths without a setting of their own are checked as well."""
    with pytest.raises(RequestError, match=f"bits out of range: {field} 9"):
        replace(NumberFormat(4, 4), **{field: 9})
