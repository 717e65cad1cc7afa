"""Operators that select or reorder values work on bytes, which are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_operator import Written, some_bytes

from acq.errors import RequestError

aten = torch.ops.aten

X = some_bytes(2, 4, 6, 8)
CASES: dict[str, tuple[Any, ...]] = {
    "flip": (aten.flip.default, X, [-1, 1]),
    "roll over an axis twice": (aten.roll.default, X, [3, -1, 2], [2, -1, 2]),
    "repeated one by one": (aten.repeat_interleave.self_int, X, 3, -2),
    "other order of channels": (aten.index.Tensor, X, [None, torch.tensor([2, 1, 0])]),
    "negative indices": (aten.index.Tensor, X, [None, None, None, torch.tensor([-1, 0, 0])]),
    "indices of two dimensions": (aten.index.Tensor, X, [None, None, torch.tensor([[0, 1], [5, -1]])]),
    "index_select": (aten.index_select.default, X, -2, torch.tensor([1, 0, 5])),
    "pixel shuffle": (aten.pixel_shuffle.default, X, 2),
    "pixel unshuffle": (aten.pixel_unshuffle.default, X, 2),
    "channel shuffle": (aten.channel_shuffle.default, X, 2),
    "shuffle of another name": (aten.native_channel_shuffle.default, X, 2),
    "shuffle of a sequence": (aten.channel_shuffle.default, X.flatten(2), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_moved(case: str) -> None:
    """The file has no floats, and each byte is where torch puts it."""
    written = Written(*CASES[case])
    assert written.moves_bytes()
    assert written.is_exact()


@given(
    factors=st.tuples(st.floats(0.2, 3.4), st.floats(0.2, 3.4)),
    exact=st.booleans(),
    spelling=st.sampled_from(["factors", "size", "both"]),
)
def test_nearest_neighbours_are_those_of_torch(factors: tuple[float, float], exact: bool, spelling: str) -> None:
    """Any factor and any size, in each spelling, by both rules of torch."""
    size = [max(int(size * factor), 1) for size, factor in zip(X.shape[2:], factors, strict=True)]
    packet = aten._upsample_nearest_exact2d if exact else aten.upsample_nearest2d
    if spelling == "both":
        written = Written(packet.default, X, size, *factors)
    else:
        written = Written(packet.vec, X, *((None, [*factors]) if spelling == "factors" else (size, None)))
    assert written.moves_bytes()
    assert written.is_exact()


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_whole_factors_are_a_resize(factor: int) -> None:
    """Engines have a fast operator for them."""
    written = Written(aten.upsample_nearest1d.vec, X.flatten(2), None, [float(factor)])
    assert written.kinds[:-1] == ["Resize"]
    assert written.is_exact()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((aten.flip.default, X, [0]), "along an axis of unknown size"),
        ((aten.roll.default, X, [3]), "over all axes at once"),
        ((aten.repeat_interleave.self_int, X, 2), "along an axis of unknown size"),
        ((aten.index.Tensor, X, [None, torch.tensor([0]), torch.tensor([1])]), "along several axes at once"),
        ((aten.index.Tensor, X, [None, torch.tensor([True, False, True, True])]), "no constant integers"),
        ((aten.pixel_shuffle.default, X[0], 2), r"for other values than \[N, C, H, W\]"),
        ((aten.pixel_unshuffle.default, X[0], 2), r"for other values than \[N, C, H, W\]"),
    ],
)
def test_what_depends_on_the_batch_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    """Such an operator has no form on bytes; nothing similar is written instead."""
    with pytest.raises(RequestError, match=words):
        Written(*arguments)
