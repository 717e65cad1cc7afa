"""What a network returns: tensors, nested in tuples, lists, dicts and objects, and described as a JSON value.

A structure is the text ``tensor``, or an object of one key: ``constant`` with a number, a text, a boolean or null;
``tuple`` or ``list`` with structures; ``dict``, ``named`` (a tuple with names) or ``fields`` (an object) with pairs of
a key and a structure. Tensors are in the order in which they occur.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Structure = str | dict[str, Any]

TENSOR: Structure = "tensor"
ALONE = "logits"  # the name of a tensor that is returned alone
_DEEPEST = 32  # levels of nesting
_CONSTANTS = (bool, int, float, str, type(None))
_SEQUENCES, _PAIRS = ("tuple", "list"), ("dict", "named", "fields")


class Fields(dict[Any, Any]):
    """The values of an object by key, by attribute and by position."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the network's output has no {name!r}")

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, int):
            return list(self.values())[key]
        raise KeyError(key)


class Named(tuple[Any, ...]):
    """The values of a named tuple by position and by attribute."""

    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        if name != "names" and name in self.names:
            return self[self.names.index(name)]
        raise AttributeError(f"the network's output has no {name!r}")


def flattened(value: Any, depth: int = 0) -> tuple[Structure, list[Tensor]]:
    """The structure of a value and its tensors in order.

    Raises:
        TypeError: A part is none of the kinds above, or nested too deeply; the message names it.
    """
    if depth > _DEEPEST:
        raise TypeError("values nested too deeply")
    if isinstance(value, Tensor):
        return TENSOR, [value]
    if isinstance(value, _CONSTANTS) and not (isinstance(value, float) and not math.isfinite(value)):
        return {"constant": value}, []
    kind, keys, items = _parts(value)
    parts = [flattened(item, depth + 1) for item in items]
    tensors = [tensor for _, found in parts for tensor in found]
    inner = [structure for structure, _ in parts]
    return {kind: inner if keys is None else [list(pair) for pair in zip(keys, inner, strict=True)]}, tensors


def rebuilt(structure: Structure, tensors: Sequence[Any]) -> Any:
    """The value with that structure and these tensors."""
    return _rebuilt(structure, iter(tensors))


def names_in(structure: Structure) -> tuple[str, ...]:
    """The name of each tensor: its keys and positions, joined by dots; ``logits`` for a tensor alone."""
    return (ALONE,) if structure == TENSOR else tuple(_names(structure, ""))


def checked(structure: Any, depth: int = 0) -> Structure:
    """A value from a file, if it is a structure.

    Raises:
        ValueError: It is none.
    """
    if structure == TENSOR:
        return TENSOR
    if depth > _DEEPEST or not isinstance(structure, dict) or len(structure) != 1:
        raise ValueError("the structure of the output is not one that acq writes")
    ((kind, content),) = structure.items()
    if kind == "constant" and isinstance(content, _CONSTANTS):
        return structure
    if kind in _SEQUENCES and isinstance(content, list):
        return {kind: [checked(item, depth + 1) for item in content]}
    if kind in _PAIRS and isinstance(content, list) and all(_is_pair(kind, pair) for pair in content):
        return {kind: [[key, checked(item, depth + 1)] for key, item in content]}
    raise ValueError("the structure of the output is not one that acq writes")


def _parts(value: Any) -> tuple[str, list[Any] | None, list[Any]]:
    """The kind of a container, its keys if it has any, and what it contains."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named", list(value._fields), list(value)
    if isinstance(value, list | tuple):
        return "list" if isinstance(value, list) else "tuple", None, list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = [field.name for field in dataclasses.fields(value)]
        return "fields", keys, [getattr(value, key) for key in keys]
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return "dict", list(value), list(value.values())
    known = getattr(value, "__dict__", {})
    if any(isinstance(part, Tensor) for part in known.values()):
        return "fields", list(known), list(known.values())
    raise TypeError(f"a value of type {type(value).__name__}")


def _rebuilt(structure: Structure, tensors: Iterator[Any]) -> Any:
    if isinstance(structure, str):
        return next(tensors)
    ((kind, content),) = structure.items()
    if kind == "constant":
        return content
    if kind in _SEQUENCES:
        items = [_rebuilt(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    pairs = [(key, _rebuilt(item, tensors)) for key, item in content]
    if kind == "named":
        made = Named(item for _, item in pairs)
        made.names = tuple(key for key, _ in pairs)
        return made
    return Fields(pairs) if kind == "fields" else dict(pairs)


def _names(structure: Structure, above: str) -> Iterator[str]:
    if isinstance(structure, str):
        yield above
        return
    ((kind, content),) = structure.items()
    if kind != "constant":
        for key, item in enumerate(content) if kind in _SEQUENCES else content:
            yield from _names(item, f"{above}.{key}" if above else str(key))


def _is_pair(kind: str, pair: Any) -> bool:
    keys = (str, int) if kind == "dict" else (str,)
    return isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in keys
