"""Checked reading of tensor files from outside: the declared size is compared with the real one before a library reads.

Torch reads pickles with ``weights_only=True``, which runs no code of theirs. But it does call the functions that build
tensors, with any numbers, and takes a storage's size from the pickle. So a file of 400 bytes can request gigabytes.
For that reason the pickle is scanned first, without building anything.
"""

from __future__ import annotations

import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from acq.files.limits import MIB, WEIGHTS_BYTES, format_bytes, require_size

_ARCHIVE = b"PK\x03\x04"  # torch reads files with this beginning as archives, others as pickles in sequence
_HEADER_BYTES = 16 * MIB  # of safetensors: 0.1 kB per tensor
_PICKLES = 5  # in a file without archive: mark, version, system, tensors, names of storages
_ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip
# functions that build plain tensors, or containers without a given size; excluded are bytearray(n), legacy
# constructors, and tensors that are sparse, nested, quantized or on the meta device
_BUILDERS = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "torch.Size", "torch.device",
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    "torch._utils._rebuild_parameter_with_state", "builtins.set", "__builtin__.set", "builtins.complex",
    "__builtin__.complex",
}  # fmt: skip
# the operations of torch's own reader; after any other, torch and this scan could understand the rest differently
_OPERATIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
}  # fmt: skip
_REFERENCE_LENGTH = 8  # operations in a reference to a storage at most


class MoreThanWeightsError(ValueError):
    """The file is no pickle, or the pickle builds more than plain tensors, numbers, text and containers of them."""


@dataclass(frozen=True)
class _Storage:
    """Bytes that a pickle declares under a key."""

    key: str
    bytes: int


def read_pickle(file: IO[bytes]) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU.

    Raises:
        MoreThanWeightsError: The file holds something else.
        ValueError: The file declares more than it has.
        Exception: The file is damaged; torch's errors have no common base.
    """
    _check_declared(file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of old protocols and of TorchScript, which it then refuses
        return torch.load(file, map_location="cpu", weights_only=True)


def from_safetensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file's content.

    Raises:
        ValueError: The header is longer than the content or the limit.
        Exception: Other damage; safetensors compares each tensor's shape and position with the length.
    """
    _check_header(content[:8], len(content))
    return safetensors.torch.load(content)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, with only the tensors in memory; raises as ``from_safetensors``."""
    with path.open("rb") as file:
        _check_header(file.read(8), path.stat().st_size)
    return safetensors.torch.load_file(path)


def require_weights_size(path: Path) -> None:
    """Refuse a file that is larger than any network's weights.

    Raises:
        RequestError: The file has more than ``WEIGHTS_BYTES``.
        OSError: The file does not exist.
    """
    require_size(path, WEIGHTS_BYTES, "save only the network's state_dict()")


def _check_header(beginning: bytes, length: int) -> None:
    declared, most = int.from_bytes(beginning, "little"), min(_HEADER_BYTES, length - 8)
    if declared > most:
        raise ValueError(f"its header declares {format_bytes(declared)} but may have {format_bytes(max(most, 0))}")


def _check_declared(file: IO[bytes]) -> None:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    file.seek(0)
    if is_archive:
        _check_archive(file, length)
    else:
        storages: dict[str, int] = {}
        for storage in (storage for _ in range(_PICKLES) for storage in _storages(file)):
            storages[storage.key] = max(storage.bytes, storages.get(storage.key, 0))
        _require_stored(sum(storages.values()), length)


def _check_archive(file: IO[bytes], length: int) -> None:
    """Compare storages with members, and members with the file, which holds each uncompressed and once."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        folder = _pickle_folder(members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("it is compressed, but torch.save never compresses")
        if len(members) != len(archive.infolist()):
            raise ValueError("it has two members of one name")
        _require_stored(sum(member.file_size for member in members.values()), length)
        with archive.open(f"{folder}data.pkl") as pickle:
            for storage in _storages(pickle):
                member = members.get(f"{folder}data/{storage.key}")
                _require_stored(storage.bytes, 0 if member is None else member.file_size)


def _pickle_folder(members: Mapping[str, zipfile.ZipInfo]) -> str:
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("it has no pickle, or several")
    if f"{folders[0]}constants.pkl" in members:
        raise ValueError("it is a TorchScript program")
    return folders[0]


def _require_stored(declared: int, stored: int) -> None:
    if declared > stored:
        raise ValueError(f"it declares {format_bytes(declared)} of tensors and has {format_bytes(stored)}")


def _storages(pickle: IO[bytes]) -> Iterator[_Storage]:
    """Yield the storages that a pickle refers to, in order, without building anything.

    Torch writes out a reference in full each time, so the last pushed values describe it. A literal is pushed as it
    is, and any other value as a tuple with the operation's name.
    """
    pushed: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in _operations(pickle):
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = pushed[-1] if pushed else (name,)
        elif name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo.get(argument, (name,)))
        elif name == "BINPERSID":
            yield _referenced_storage(pushed)
            pushed.append((name,))
        elif name == "GLOBAL":
            pushed.append((name, _permitted(argument.replace(" ", "."))))
        elif name != "PROTO":
            pushed.append((name,) if argument is None else argument)
        del pushed[:-_REFERENCE_LENGTH]


def _referenced_storage(pushed: list[Any]) -> _Storage:
    """The storage that the last pushed values describe."""
    if pushed[-2:] == [("NONE",), ("TUPLE",)]:  # torch before 1.6 has a sixth item, None
        del pushed[-2]
    match pushed:
        case [*_, ("MARK",), "storage", ("GLOBAL", kind), str(key), _, int(count), ("TUPLE",)]:
            if kind in _ITEM_BYTES and count >= 0:
                return _Storage(key, count * _ITEM_BYTES[kind])
    raise MoreThanWeightsError("a reference to something else")


def _permitted(path: str) -> str:
    """A storage's type, such as ``Float``, or the name itself of another permitted function."""
    module, _, name = path.rpartition(".")
    kind = name.removesuffix("Storage")
    if kind != name and kind in _ITEM_BYTES and module in ("torch", "torch.cuda", "torch.storage"):
        return kind
    if path in _BUILDERS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
        return path
    raise MoreThanWeightsError(path)


def _operations(pickle: IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            if operation.name not in _OPERATIONS:
                raise MoreThanWeightsError(f"operation {operation.name}")
            yield operation.name, argument
    except MoreThanWeightsError:
        raise
    except ValueError as error:  # no pickle, or a cut one
        raise MoreThanWeightsError(str(error)) from error
