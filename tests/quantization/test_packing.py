from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acq.quantization.packing import pack, unpack


@given(st.integers(2, 8), st.lists(st.integers(-128, 127), min_size=0, max_size=40))
def test_packing_is_inverted(bits: int, values: list[int]) -> None:
    """unpack(pack(q)) is q, in ceil(n * bits / 8) bytes."""
    qmax = 2 ** (bits - 1) - 1
    q = torch.tensor(values, dtype=torch.int8).clamp(-qmax - 1, qmax)
    packed = pack(q, bits)
    assert packed.numel() == (len(values) * bits + 7) // 8
    assert torch.equal(unpack(packed, bits, [len(values)]), q)


def test_bits_are_in_the_documented_order() -> None:
    """The first integer takes the lowest bits of the first byte, and integers continue across bytes."""
    assert pack(torch.tensor([1, -1, 0, 2], dtype=torch.int8), 3).tolist() == [0b00111001, 0b0100]
    assert unpack(torch.tensor([0b00111001, 0b0100], dtype=torch.uint8), 3, [2, 2]).tolist() == [[1, -1], [0, 2]]


def test_unpacking_checks_the_size() -> None:
    """Bytes that are too few or too many for the shape are refused."""
    with pytest.raises(ValueError, match="3 bytes do not hold 4 integers of 4 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, [2, 2])
