"""Files of tensors from elsewhere: what one claims is held against what it has before torch or safetensors reads it.

Pickles are read by torch with ``weights_only=True``, which runs no code of theirs. It does call what builds tensors and
other values with any numbers, though, and takes a storage's size from the pickle: a file of 400 bytes may ask for
gigabytes. So the pickle is gone through first, without building anything.
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

from acq.files.limits import MIB, WEIGHTS_BYTES, in_bytes, require_at_most

_ARCHIVE = b"PK\x03\x04"  # with which torch takes a file for an archive; before 1.6 it wrote pickles in a row
_HEADER_BYTES = 16 * MIB  # of safetensors: 0.1 kB a tensor
_BEFORE, _BEHIND = 3, 1  # pickles around the one with the tensors: a mark, a version, the system; names of storages
_ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip
# what builds plain tensors, and containers that say nothing of a size; bytearray(n), legacy constructors and tensors
# that are sparse, nested, quantized or of no device are left out
_BUILDERS = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "torch.Size", "torch.device",
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    "torch._utils._rebuild_parameter_with_state", "builtins.set", "__builtin__.set", "builtins.complex",
    "__builtin__.complex",
}  # fmt: skip
# those that torch's own reader knows; with others what follows could mean something else to it than to us
_OPERATIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
}  # fmt: skip
_REFERENCE = 8  # operations that a reference to a storage takes at most


class MoreThanWeightsError(ValueError):
    """A pickle is none, or builds something beyond plain tensors, numbers, text and containers of them."""


@dataclass(frozen=True)
class _Storage:
    """Bytes that a pickle says it has under a key."""

    key: str
    bytes: int


def unpickled(file: IO[bytes]) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Raises:
        MoreThanWeightsError: it holds something else.
        ValueError: it claims more than the file has.
        Exception: it is damaged; torch has no common base for that.
    """
    _check_claims(file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of old protocols and of TorchScript, which it then refuses
        return torch.load(file, map_location="cpu", weights_only=True)


def from_safetensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content.

    Raises:
        ValueError: its header claims more than there is.
        Exception: other damage; safetensors holds each tensor's shape and place against the length.
    """
    _check_header(content[:8], len(content))
    return safetensors.torch.load(content)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The same of a file that is never in memory as a whole, but for its tensors."""
    with path.open("rb") as file:
        _check_header(file.read(8), path.stat().st_size)
    return safetensors.torch.load_file(path)


def require_weights_size(path: Path) -> None:
    """Refuse a file that is larger than any network's weights; RequestError."""
    require_at_most(WEIGHTS_BYTES, path, "save the network's state_dict() alone")


def _check_header(beginning: bytes, length: int) -> None:
    claimed, most = int.from_bytes(beginning, "little"), min(_HEADER_BYTES, length - 8)
    if claimed > most:
        raise ValueError(f"its header claims {in_bytes(claimed)} where there can be {in_bytes(max(most, 0))}")


def _check_claims(file: IO[bytes]) -> None:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    file.seek(0)
    if archive:
        _check_archive(file, length)
    else:
        storages: dict[str, int] = {}
        for storage in _pickles_in_a_row(file):
            storages[storage.key] = max(storage.bytes, storages.get(storage.key, 0))
        _require(sum(storages.values()), length)


def _check_archive(file: IO[bytes], length: int) -> None:
    """Members are stored as they are, once each, so that together they cannot be more than the file."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        folder = _folder_of_pickle(members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("it is compressed, which torch.save never does")
        if len(members) != len(archive.infolist()):
            raise ValueError("it has two members of one name")
        _require(sum(member.file_size for member in members.values()), length)
        with archive.open(f"{folder}data.pkl") as pickle:
            for storage in _storages(pickle):
                member = members.get(f"{folder}data/{storage.key}")
                _require(storage.bytes, 0 if member is None else member.file_size)


def _folder_of_pickle(members: Mapping[str, zipfile.ZipInfo]) -> str:
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("it has no pickle, or several")
    if f"{folders[0]}constants.pkl" in members:
        raise ValueError("it is a TorchScript program")
    return folders[0]


def _require(claimed: int, there: int) -> None:
    if claimed > there:
        raise ValueError(f"it claims {in_bytes(claimed)} of tensors and has {in_bytes(there)}")


def _pickles_in_a_row(file: IO[bytes]) -> Iterator[_Storage]:
    for _ in range(_BEFORE + 1 + _BEHIND):
        yield from _storages(file)


def _storages(pickle: IO[bytes]) -> Iterator[_Storage]:
    """The storages that a pickle refers to, in order, without building anything of it.

    A reference is a tuple that is written out each time, so what it holds is what was pushed since the mark before it:
    literals as they are, anything else as a tuple of the operation's name.
    """
    pushed: list[Any] = []
    memo: dict[int, Any] = {}
    for name, given in _operations(pickle):
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = pushed[-1] if pushed else (name,)
        elif name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo.get(given, (name,)))
        elif name == "BINPERSID":
            yield _described(pushed)
            pushed.append((name,))
        elif name == "GLOBAL":
            pushed.append((name, _permitted(given.replace(" ", "."))))
        elif name != "PROTO":
            pushed.append((name,) if given is None else given)
        del pushed[:-_REFERENCE]


def _described(pushed: list[Any]) -> _Storage:
    """The storage that the last values pushed refer to; before torch 1.6 there was a sixth item, which is None."""
    if pushed[-2:] == [("NONE",), ("TUPLE",)]:
        del pushed[-2]
    match pushed:
        case [*_, ("MARK",), "storage", ("GLOBAL", kind), str(key), _, int(count), ("TUPLE",)]:
            if kind in _ITEM_BYTES and count >= 0:
                return _Storage(key, count * _ITEM_BYTES[kind])
    raise MoreThanWeightsError("a reference to something else")


def _permitted(path: str) -> str:
    """The kind of storage, such as ``Float``, or the name itself of what else may be built."""
    module, _, name = path.rpartition(".")
    kind = name.removesuffix("Storage")
    if kind != name and kind in _ITEM_BYTES and module in ("torch", "torch.cuda", "torch.storage"):
        return kind
    if path in _BUILDERS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
        return path
    raise MoreThanWeightsError(path)


def _operations(pickle: IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        for operation, given, _ in pickletools.genops(pickle):
            if operation.name not in _OPERATIONS:
                raise MoreThanWeightsError(f"operation {operation.name}")
            yield operation.name, given
    except MoreThanWeightsError:
        raise
    except ValueError as error:  # no pickle, or cut
        raise MoreThanWeightsError(str(error)) from error
