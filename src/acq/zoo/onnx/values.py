"""The values of an imported graph: numbers of the host, which follow from shapes and constants, and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq.files.limits import FOLDED_VALUES

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Host = NDArray[Any]  # of numbers; of objects where one of them is a symbol for the number of images
Value = Host | Tensor
_INTEGERS = "iub"  # kinds of numpy types, with booleans


class UnreadError(ValueError):
    """An operator cannot be computed as the file asks; the message is the end of a sentence about it."""


def is_host(value: Any) -> TypeIs[Host]:
    """Whether a value consists of numbers of the host."""
    return isinstance(value, np.ndarray)


def stays_on_host(constant: Host) -> bool:
    """Whether a constant is used as numbers: all integers are, and a single float is."""
    return constant.dtype.kind in _INTEGERS or constant.size == 1


def host(numbers: Any) -> Host:
    """Numbers as a value of the host; of objects only where one is a symbol."""
    array = np.asarray(numbers, object)
    if all(isinstance(number, bool | np.bool_) for number in array.flat):
        return array.astype(bool)
    if all(isinstance(number, int | np.integer | bool | np.bool_) for number in array.flat):
        return array.astype(np.int64)
    if all(isinstance(number, int | float | np.number) for number in array.flat):
        return array.astype(np.float32)
    return array


def integers(value: Value) -> list[Any]:
    """The integers of a value in order; some may be symbols.

    Raises:
        UnreadError: They follow from the images.
    """
    if not is_host(value):
        raise UnreadError("takes sizes or places that depend on the values of the images")
    if value.dtype.kind == "f":
        if not all(float(number).is_integer() for number in value.flat):
            raise UnreadError("takes sizes that are no integers")
        return [int(number) for number in value.flat]
    return list(value.reshape(-1).tolist())


def integer(value: Value) -> Any:
    """The only integer of a value, which may be a symbol."""
    found = integers(value)
    if len(found) != 1:
        raise UnreadError(f"takes {len(found)} numbers where one is expected")
    return found[0]


def plain(numbers: Iterable[Any]) -> list[int]:
    """Integers that must not be symbols.

    Raises:
        UnreadError: One follows from the number of images.
    """
    found = list(numbers)
    if not all(isinstance(number, int) for number in found):
        raise UnreadError("takes sizes that depend on the number of images")
    return found


def number(value: Value) -> float:
    """The only number of a constant.

    Raises:
        UnreadError: It follows from the images or from how many there are, or there are several.
    """
    if value.ndim > 0 and math.prod(value.shape) != 1:
        raise UnreadError("takes several numbers where one is expected")
    if not is_host(value):
        raise UnreadError("takes a number that depends on the values of the images")
    (found,) = value.reshape(-1)
    if value.dtype == object and not isinstance(found, int | float | np.number):
        raise UnreadError("takes a number that depends on the number of images")
    return float(found)


def tensor(value: Value, device: torch.device) -> Tensor:
    """A value as a tensor: floats in 32 bits, integers in 64.

    Raises:
        UnreadError: A number of it is a symbol.
    """
    if isinstance(value, Tensor):
        return value
    if value.dtype == object:
        raise UnreadError("computes with the number of images")
    kind = {"b": torch.bool, "i": torch.int64, "u": torch.int64}.get(value.dtype.kind, torch.float32)
    return torch.tensor(np.ascontiguousarray(value), dtype=kind, device=device).reshape(value.shape)


def matched(values: Sequence[Value]) -> list[Any]:
    """Operands of one operator: all of the host, or tensors and plain numbers that broadcast as they do."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return list(values)
    rank = max(each.dim() for each in tensors)
    device = tensors[0].device
    return [_number_or_tensor(value, rank, device) for value in values]


def _number_or_tensor(value: Value, rank: int, device: torch.device) -> Any:
    if not is_host(value) or value.size != 1 or value.ndim > rank:
        return tensor(value, device)
    alone = value.reshape(-1)[0]
    return alone if value.dtype == object else alone.item()


def require_small(shape: Iterable[Any]) -> None:
    """Refuse a value of the host that would take much memory.

    Raises:
        UnreadError: It has too many numbers, or a negative size.
    """
    sizes = [size for size in shape if isinstance(size, int)]
    if min(sizes, default=0) < 0 or math.prod(sizes) > FOLDED_VALUES:
        raise UnreadError(f"makes a constant of more than {FOLDED_VALUES:,} numbers")
