"""Operators that join tensors or take them apart work on bytes, which are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_operator import Written, quantizer, some_bytes

from acq.errors import RequestError

aten = torch.ops.aten
X, Y = some_bytes(2, 4, 6, 8), some_bytes(2, 4, 6, 8, seed=1)
CASES: dict[str, tuple[Any, ...]] = {
    "concatenation": (aten.cat.default, [X, Y], -1),
    "concatenation of another name": (aten.concat.default, [X, Y, X], 1),
    "stack": (aten.stack.default, [X, Y], 2),
    "stack behind the last axis": (aten.stack.default, [X, Y], -1),
    "maximum": (aten.maximum.default, X, Y),
    "minimum": (aten.minimum.default, X, Y),
    "maximum of another name": (aten.max.other, X, Y),
    "minimum of another name": (aten.min.other, X, Y),
    "split": (aten.split.Tensor, X, 5, -1),
    "split by sizes": (aten.split_with_sizes.default, X, [1, 3], 1),
    "split of another name": (aten.split.sizes, X, [4, 2], -2),
    "chunks": (aten.chunk.default, X, 3, -1),
    "slices": (aten.unbind.int, X, -2),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_one_quantizer_stay_bytes(case: str) -> None:
    """The file has no floats."""
    written = Written(*CASES[case])
    assert written.moves_bytes()
    assert written.is_exact()


@given(scale=st.floats(0.5, 3), zero_point=st.integers(0, 15), bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_a_maximum_is_taken_behind_the_quantizer(scale: float, zero_point: int, bits: int, seed: int) -> None:
    """Rounding is monotone, so the bytes of the maximum are the maximum of the bytes, clipped ones too."""
    behind = quantizer(scale, min(zero_point, 2**bits - 1), bits)
    x, y = some_bytes(2, 3, 4, seed=seed), some_bytes(2, 3, 4, seed=seed + 1)
    written = Written(aten.maximum.default, x, y, behind=behind, scales=(0.7, 1.3))
    assert written.kinds.count("QuantizeLinear") == 2
    assert written.kinds.index("Max") > written.kinds.index("QuantizeLinear")
    assert written.is_exact()


@pytest.mark.parametrize("call", [(aten.split.Tensor, X, 1, 0), (aten.unbind.int, X, 0), (aten.chunk.default, X, 2, 0)])
def test_images_are_not_taken_apart(call: tuple[Any, ...]) -> None:
    """Their number is unknown."""
    with pytest.raises(RequestError, match="along an axis of unknown size"):
        Written(*call)
