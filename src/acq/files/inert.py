"""Placeholders for the foreign objects of a checkpoint: they keep what the file says of an object and do nothing.

Hyper-parameters, paths and whole modules are objects of foreign classes. Torch reads them with ``weights_only=True``
into these placeholders, so no foreign code runs, installed or not. ``acq.files.pickles`` has scanned the file before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals, safe_globals

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")  # numpy's names of types that torch has too


class Inert:
    """Stands for an object of a foreign class.

    Attributes:
        arguments: What the object was made of.
        state: What the object was then filled with: usually its attributes.
    """

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Inert:
        """Make a placeholder, whatever the foreign class takes."""
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the object by name; empty if its state is none."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return dict(dict.items(state)) if isinstance(state, dict) else {}


class Type(Inert):
    """Stands for numpy's type of an array."""

    @property
    def code(self) -> str | None:
        """The type with its byte order, such as ``<f4``, or None if torch has no such type."""
        match self.arguments, self.state:
            case (str(code), *_), (_, str(order), *_) if code in _NUMBERS and order in ("<", ">", "|"):
                return order + code
        return None


class Array(Inert):
    """Stands for an array of numpy."""

    @cached_property
    def tensor(self) -> Tensor | None:
        """The array as a tensor, or None if it holds no numbers.

        Raises:
            ValueError: The array has other than the declared number of bytes.
        """
        match self.state:
            case (_, tuple(shape), Type(code=str(code)), bool(fortran), bytes(content)):
                dtype, counts = np.dtype(code), [count for count in shape if type(count) is int and count >= 0]
                if len(counts) != len(shape) or math.prod(counts) * dtype.itemsize != len(content):
                    raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
                values = np.frombuffer(content, dtype).reshape(counts, order="F" if fortran else "C")
                return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))
        return None


class _Table:
    """Stands for a class that is filled by keys, such as a default dictionary: torch fills no other than its own."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Items:
    """Stands for a class that is filled by appending."""

    def __new__(cls, *_: Any) -> Any:
        return []


class _Bytes:
    """Stands for ``bytes``, which pickles call for empty ones."""

    def __new__(cls, *_: Any) -> Any:
        return b""


class _Lookup:
    """Stands for ``getattr``, which pickles call for classes inside classes and for methods."""

    def __new__(cls, *_: Any) -> Any:
        return Inert


PLACEHOLDERS: Mapping[str, Any] = {
    "object": Inert, "array": Array, "type": Type, "table": _Table, "items": _Items, "bytes": _Bytes, "lookup": _Lookup,
}  # fmt: skip


@contextmanager
def placeholders(kinds: Mapping[str, str]) -> Iterator[None]:
    """Let torch read foreign names as placeholders, and no other name that it does not know itself.

    Args:
        kinds: For each name, a key of ``PLACEHOLDERS``.
    """
    others = get_safe_globals()  # a library in this process may have allowed real classes under the same names
    clear_safe_globals()
    try:
        with safe_globals([(PLACEHOLDERS[kind], name) for name, kind in kinds.items()]):
            yield
    finally:
        clear_safe_globals()
        add_safe_globals(others)
