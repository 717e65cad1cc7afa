"""Where in a checkpoint a network's weights are: under which path of keys all of them fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from acq.zoo.nests import Tables

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of compilation and sharding
_COUNTERS = ("total_ops", "total_params", "n_averaged")  # of thop and of torch's AveragedModel
_AVERAGED = {"ema", "swa", "avg", "averaged", "average"}
_UNREAD = "num_batches_tracked"  # old checkpoints lack it, and no evaluation reads it


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        table: The path of keys to its table.
        name: Its name there.
        tensor: The tensor.
    """

    table: str
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Place:
    """A path in a checkpoint, with a network's weights under it.

    Attributes:
        path: Keys and parts of names, joined by dots.
        found: Entries by the network's names.
        unexpected: Other names under the path, in the same tables.
        outside: Other names in the same tables that are not under the path.
    """

    path: str
    found: Mapping[str, Entry]
    unexpected: tuple[str, ...]
    outside: tuple[str, ...]

    def missing(self, own: Iterable[str]) -> list[str]:
        """Names of the network without an entry."""
        return [name for name in own if name not in self.found and is_required(name)]

    @property
    def is_averaged(self) -> bool:
        """Whether the path says that these are averages over training steps."""
        return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.path).lower()))

    @property
    def label(self) -> str:
        """The path as a message names it."""
        return self.path or "the top level"


def is_required(name: str) -> bool:
    """Return whether a network needs this tensor."""
    return not name.endswith(_UNREAD)


def bare(name: str) -> str:
    """Return a path without the parts that compilation and sharding add anywhere."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def own_name(name: str) -> str:
    """Return a network's own name without what wrappers around the network add: also ``module.`` in front."""
    parts = bare(name).split(".")
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def places_of(tables: Tables, own: Mapping[str, Tensor], key: str | None) -> list[Place]:
    """Find every path under which a checkpoint has names of a network.

    Args:
        tables: Of ``acq.zoo.nests.tables_of``.
        own: The network's tensors by ``own_name``.
        key: Only paths at or under this one; None for all.

    Raises:
        ValueError: One name stands twice, with and without a wrapper's part.
    """
    entries = {path: [Entry(path, name, tensor) for name, tensor in table.items()] for path, table in tables.items()}
    deepest = max((name.count(".") for name in own), default=0)
    found: dict[str, dict[str, Entry]] = {}
    for entry in (entry for group in entries.values() for entry in group):
        parts = _full(entry).split(".")
        for cut in range(max(0, len(parts) - 1 - deepest), len(parts)):
            name, path = ".".join(parts[cut:]), ".".join(parts[:cut])
            if name in own and is_under(path, key):
                known = found.setdefault(path, {}).setdefault(name, entry)
                if known is not entry:
                    raise ValueError(f"has both {_written(known)} and {_written(entry)}; save one state_dict()")
    return [_place(path, names, entries) for path, names in found.items()]


def is_under(path: str, key: str | None) -> bool:
    """Return whether a path is the key, or under it."""
    return key is None or path == bare(key) or path.startswith(f"{bare(key)}.")


def fits(place: Place, own: Mapping[str, Tensor]) -> bool:
    """Return whether all of the network's weights are there, with their shapes and kinds of numbers."""
    return not place.missing(own) and not any(misshapen(place, own)) and not any(mistyped(place, own))


def misshapen(place: Place, own: Mapping[str, Tensor]) -> list[str]:
    """Say which weights have another shape than the network's."""
    return [
        f"{name} {list(entry.tensor.shape)} instead of {list(own[name].shape)}"
        for name, entry in place.found.items()
        if entry.tensor.shape != own[name].shape
    ]


def mistyped(place: Place, own: Mapping[str, Tensor]) -> list[str]:
    """Say which weights are integers or complex numbers where the network has floating-point numbers."""
    return [
        f"{name} {entry.tensor.dtype} instead of {own[name].dtype}"
        for name, entry in place.found.items()
        if own[name].is_floating_point() and not entry.tensor.is_floating_point()
    ]


def distinct(places: Iterable[Place]) -> list[Place]:
    """Leave out places with the values of an earlier one, such as the best and the last epoch of a short training."""
    kept: list[Place] = []
    for place in places:
        if not any(_equal(place, other) for other in kept):
            kept.append(place)
    return kept


def pairs(missing: Iterable[str], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Pair a network's missing names with other names of a checkpoint, by shape and order.

    Args:
        missing: Names of the network.
        tensors: The checkpoint's tensors under names that the network does not have.
        own: The network's tensors.

    Returns:
        The checkpoint's name for each missing one; empty if one finds no partner.
    """
    free, found = dict(tensors), {}
    for name in missing:
        last = name.rpartition(".")[2]
        same = [other for other, tensor in free.items() if tensor.shape == own[name].shape]
        partner = next((other for other in same if other.rpartition(".")[2] == last), next(iter(same), None))
        if partner is None:
            return {}
        found[name] = partner
        del free[partner]
    return found


def _place(path: str, found: Mapping[str, Entry], entries: Mapping[str, list[Entry]]) -> Place:
    taken = {id(entry) for entry in found.values()}
    tables = dict.fromkeys(entry.table for entry in found.values())
    rest = [entry for table in tables for entry in entries[table] if id(entry) not in taken]
    rest = [entry for entry in rest if entry.name.rpartition(".")[2] not in _COUNTERS]
    under = [entry for entry in rest if not path or is_under(_full(entry), path)]
    outside = [entry.name for entry in rest if path and not is_under(_full(entry), path)]
    cut = len(path) + 1 if path else 0
    return Place(path, found, tuple(_full(entry)[cut:] for entry in under), tuple(outside))


def _full(entry: Entry) -> str:
    return bare(_written(entry))


def _written(entry: Entry) -> str:
    return f"{entry.table}.{entry.name}" if entry.table else entry.name


def _equal(a: Place, b: Place) -> bool:
    return a.found.keys() == b.found.keys() and all(
        a.found[name].tensor.dtype == b.found[name].tensor.dtype
        and torch.equal(a.found[name].tensor, b.found[name].tensor)
        for name in a.found
    )
