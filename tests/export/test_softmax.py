"""A softmax between quantizers means the same on ONNX Runtime, which has an integer form of its own for it."""

from __future__ import annotations

import pytest
import torch
from one_operator import Written, quantizer, some_bytes

aten = torch.ops.aten
X = some_bytes(2, 4, 16, 16)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("scale", [0.002, 0.0031, 1 / 256])
def test_a_softmax_between_quantizers_is_exact(axis: int, scale: float) -> None:
    """Talking heads quantize their attention, with whichever scale its calibration finds."""
    written = Written(aten.softmax.int, X, axis, behind=quantizer(scale, 0), scales=(0.03,))
    difference = (written.run().float() - written.wanted).abs()
    assert difference.max() <= 1
    assert difference.mean() < 1e-3  # a value near a tie
