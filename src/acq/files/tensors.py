"""Checked reading of tensor files from outside: the declared size is compared with the real one before a library reads.

Torch reads pickles with ``weights_only=True``, which runs no code of theirs. But it does call the functions that build
tensors, with any numbers, and takes a storage's size from the pickle. So a file of 400 bytes can request gigabytes.
For that reason the pickle is scanned first (``acq.files.pickles``), without building anything.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from acq.files.inert import placeholders
from acq.files.limits import MIB, WEIGHTS_BYTES, format_bytes, require_size
from acq.files.pickles import scan

_ARCHIVE = b"PK\x03\x04"  # torch reads files with this beginning as archives, others as pickles in sequence
_HEADER_BYTES = 16 * MIB  # of safetensors: 0.1 kB per tensor
_PICKLES = 5  # in a file without archive: mark, version, system, tensors, names of storages


def read_pickle(file: IO[bytes]) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU: tensors, numbers, text and containers of them.

    Raises:
        MoreThanWeightsError: The file holds something else.
        ValueError: The file declares more than it has.
        Exception: The file is damaged; torch's errors have no common base.
    """
    _check_declared(file, plain=True)
    return _load(file)


def read_foreign_pickle(file: IO[bytes]) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU; objects of foreign classes become ``acq.files.inert.Inert``.

    Raises:
        MoreThanWeightsError: The file would run code, or torch cannot read it without.
        ValueError: The file declares more than it has.
        Exception: The file is damaged; torch's errors have no common base.
    """
    with placeholders(_check_declared(file, plain=False)):
        return _load(file)


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


def _load(file: IO[bytes]) -> Any:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of old protocols
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_declared(file: IO[bytes], *, plain: bool) -> dict[str, str]:
    """Compare what the file declares with what it has; return the kinds of its foreign names."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    file.seek(0)
    if is_archive:
        return _check_archive(file, length, plain)
    storages: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for _ in range(_PICKLES):
        found = scan(file, length, plain=plain)
        kinds |= found.kinds
        for storage in found.storages:
            storages[storage.key] = max(storage.bytes, storages.get(storage.key, 0))
    _require_stored(sum(storages.values()), length)
    return kinds


def _check_archive(file: IO[bytes], length: int, plain: bool) -> dict[str, str]:
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
            found = scan(pickle, members[f"{folder}data.pkl"].file_size, plain=plain)
        for storage in found.storages:
            member = members.get(f"{folder}data/{storage.key}")
            _require_stored(storage.bytes, 0 if member is None else member.file_size)
        return found.kinds


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
