"""Named tensors in whatever a checkpoint nests them: dictionaries, lists, and modules or other objects read inert."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from acq.files.inert import Array, Inert

Tables = Mapping[str, Mapping[str, Tensor]]

_DEPTH = 64  # of containers in containers
_VALUES = 20_000_000  # in all of them
_REPEATED = 1_000  # values that a container counts for when it comes again: a small file can repeat one without end
_OPTIMIZER = re.compile(r"optim(izer|$|_)|(^|_)opt($|_)|sched|scaler", re.IGNORECASE)


def tables_of(content: Any) -> dict[str, dict[str, Tensor]]:
    """Find the tensors with names, without those of optimizers, which have the shapes of weights too.

    Args:
        content: What ``acq.files.weights.read_weights`` gives.

    Returns:
        For each path of keys, joined by dots, the tensors that are named there. A module's parameters and buffers have
        the names of its state dict.

    Raises:
        ValueError: The content is nested too deeply, or in itself.
    """
    walk = _Walk()
    walk.visit(content, "", 0)
    return {path: table for path, table in walk.found.items() if table}


class _Walk:
    def __init__(self) -> None:
        self.found: dict[str, dict[str, Tensor]] = {}
        self._left = _VALUES
        self._seen: set[int] = set()

    def visit(self, value: Any, path: str, depth: int) -> None:
        """Collect what is in a container; other values have nothing."""
        container = value  # lives as long as the content, unlike a copy of its attributes
        if isinstance(value, Inert) and not isinstance(value, Array):
            attributes = value.attributes
            if _is_module(attributes):
                self.found.setdefault(path, {}).update(self._of_module(attributes, "", depth))
                return
            value = attributes
        if isinstance(value, list | tuple):
            named = {str(at): item for at, item in enumerate(value) if not isinstance(item, Tensor | Array)}
        elif isinstance(value, dict) and not _is_optimizer(value):
            named = {str(key): item for key, item in dict.items(value)}  # a foreign file may replace the method
        else:
            return
        self._spend(container, len(value), depth)
        table = self.found.setdefault(path, {})
        for key, item in named.items():
            tensor = _tensor(item)
            if tensor is not None:
                table[key] = tensor
            elif not _OPTIMIZER.search(key):
                self.visit(item, f"{path}.{key}" if path else key, depth + 1)

    def _of_module(self, attributes: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        passing = attributes.get("_non_persistent_buffers_set") or ()
        groups = [attributes.get(kind) for kind in ("_parameters", "_buffers")]
        for group in groups:
            for name, value in dict.items(group) if isinstance(group, dict) else ():
                tensor = _tensor(value)
                if tensor is not None and name not in passing:
                    yield f"{prefix}{name}", tensor
        modules = attributes["_modules"]
        count = len(modules) + sum(len(group) for group in groups if isinstance(group, dict))
        self._spend(modules, count, depth)
        for name, module in dict.items(modules):
            if isinstance(module, Inert) and _is_module(module.attributes):
                yield from self._of_module(module.attributes, f"{prefix}{name}.", depth + 1)

    def _spend(self, container: Any, count: int, depth: int) -> None:
        self._left -= count + (_REPEATED if id(container) in self._seen else 1)
        self._seen.add(id(container))
        if depth > _DEPTH or self._left < 0:
            raise ValueError("it is nested too deeply, or in itself")


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Array):
        return value.tensor
    return Tensor.detach(value) if isinstance(value, Tensor) else None  # a foreign file may replace the method


def _is_module(attributes: Mapping[str, Any]) -> bool:
    return isinstance(attributes.get("_modules"), dict) and isinstance(attributes.get("_parameters"), dict)


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    """Whether this is the state of an optimizer: of torch, or of fastai."""
    return "state" in value and ("param_groups" in value or "hypers" in value)
