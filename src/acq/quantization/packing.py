"""Integers of 2 to 8 bits, packed into bytes without gaps. The order of bits is this project's definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack signed integers into bytes.

    Each integer takes the low ``bits`` bits of its two's complement, least significant bit first. The first integer
    takes the lowest bits of the first byte.

    Args:
        integers: int8 of any shape with n elements, each within ``bits`` bits.
        bits: Bits per integer.

    Returns:
        uint8 [ceil(n * bits / 8)].
    """
    rows = integers.reshape(-1, 1).numpy().view(np.uint8)  # [n, 1]
    planes = np.unpackbits(rows, axis=1, bitorder="little")[:, :bits]  # [n, bits]
    return torch.from_numpy(np.packbits(planes.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Invert ``pack``.

    Args:
        packed: uint8 [ceil(n * bits / 8)].
        bits: Bits per integer.
        shape: The shape of the n integers.

    Returns:
        int8 of ``shape``.

    Raises:
        ValueError: The number of bytes does not fit ``bits`` and ``shape``.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes do not hold {count} integers of {bits} bits")
    planes = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    powers = np.array([1 << i for i in range(bits - 1)] + [-(1 << (bits - 1))], dtype=np.int16)
    return torch.from_numpy((planes @ powers).astype(np.int8)).reshape(tuple(shape))
