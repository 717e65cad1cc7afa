from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from acq.files.inert import Array, Inert, Type, placeholders


def array(value: Any) -> Array:
    """A placeholder with the state that numpy writes for an array."""
    made = Array()
    version, shape, dtype, fortran, content = value.__reduce__()[2]
    kind = Type(dtype.str[1:], False, True)
    kind.__setstate__((3, dtype.str[0], None, None, None, -1, -1, 0))
    made.__setstate__((version, shape, kind, fortran, content))
    return made


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 3)), np.array(3),
        np.arange(3, dtype=">f4"), np.arange(3, dtype="f2"), np.array([True, False]), np.arange(3, dtype=np.uint8),
    ],
)  # fmt: skip
def test_an_array_becomes_the_tensor_that_numpy_would_give(value: Any) -> None:
    """In any order of dimensions and bytes, and once, however often it is asked for."""
    made = array(value)
    found = made.tensor
    assert found is made.tensor
    assert found is not None
    assert np.array_equal(found.numpy(), value)
    assert found.numpy().dtype == value.dtype.newbyteorder("=")


def test_other_arrays_have_no_tensor() -> None:
    """Text, objects, and what is no state of an array."""
    assert array(np.array(["a"])).tensor is None
    assert Array().tensor is None
    for state in ((1, (1,), "f4", False, b"1234"), "text", (1, 2, 3, 4, 5), {}):
        made = Array()
        made.__setstate__(state)
        assert made.tensor is None


@pytest.mark.parametrize("shape", [(10**12,), (3,), (-1, -2), (1.5,), ("a",), (True, 2)])
def test_an_array_with_other_than_its_bytes_is_refused(shape: tuple[Any, ...]) -> None:
    """Before anything is allocated."""
    made = array(np.arange(2.0))
    version, _, kind, fortran, content = made.state
    made.__setstate__((version, shape, kind, fortran, content))
    with pytest.raises(ValueError, match="has 16 bytes"):
        _ = made.tensor


def test_a_placeholder_keeps_attributes_and_takes_anything() -> None:
    """With and without slots; anything else has none."""
    made = Inert(1, "a", None)
    assert made.arguments == (1, "a", None)
    for state, wanted in (({"a": 1}, {"a": 1}), (({"a": 1}, {"b": 2}), {"a": 1}), (None, {}), ([1], {}), ((), {})):
        made.__setstate__(state)
        assert made.attributes == wanted


def test_placeholders_hide_what_others_allow_and_give_it_back() -> None:
    """A library may have allowed a real class under the same name."""
    before = get_safe_globals()
    try:
        add_safe_globals([Fraction])
        with placeholders({"fractions.Fraction": "object"}):
            assert get_safe_globals() == [(Inert, "fractions.Fraction")]
        assert Fraction in get_safe_globals()
        with pytest.raises(RuntimeError), placeholders({"a.b": "array"}):
            raise RuntimeError
        assert Fraction in get_safe_globals()
        assert torch.serialization.get_safe_globals() == get_safe_globals()
    finally:
        clear_safe_globals()
        add_safe_globals(before)
