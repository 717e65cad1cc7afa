"""Weights from files of any kind, told apart by content: a name such as ``model_best.pth.tar`` says little."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acq.files.limits import WEIGHTS_BYTES, format_bytes
from acq.files.npy import SUFFIX, array_of, header_of
from acq.files.tensors import load_safetensors, read_foreign_pickle

_BEGINNING = 512  # bytes that tell a file's kind
_COMPRESSION = 100  # trained weights are compressed by a tenth, and pruned ones to a tenth
_CONVERT = "write its weights with torch.save(torch.{load}('FILE').{state}, 'weights.pth')"
_TORCHSCRIPT = ("is a TorchScript program", _CONVERT.format(load="jit.load", state="state_dict()"))
_EXPORTED = ("is a program of torch.export", _CONVERT.format(load="export.load", state="state_dict"))
# beginnings of files that people give as checkpoints: what the file is, and the way out
_OTHERS = {
    b"version https://git-lfs": ("is a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    b"\x1f\x8b": ("is compressed by gzip", "unpack it, and give the checkpoint in it"),
    b"\x89HDF": ("is an HDF5 file of Keras", "give weights of a PyTorch network"),
    b"<": ("is a page of HTML or XML", "download the checkpoint again"),
    b"{": ("is JSON, such as the index of a checkpoint in parts", "join the parts, and save one state_dict()"),
}


class OtherFileError(ValueError):
    """The file is known to be something else than weights.

    Attributes:
        fact: What the file is.
        way_out: How to get weights from it.
    """

    def __init__(self, fact: str, way_out: str) -> None:
        super().__init__(f"{fact}; {way_out}")
        self.fact, self.way_out = fact, way_out


def read_weights(path: Path) -> Any:
    """Read a file of weights onto the CPU, whatever its name: of torch, safetensors, or an ``.npz`` of numpy.

    Returns:
        What the file holds: tensors in containers. Objects of foreign classes are ``acq.files.inert.Inert``.

    Raises:
        OtherFileError: The file is no file of weights.
        MoreThanWeightsError: The file would run code.
        ValueError: The file declares more than it has.
        Exception: The file is damaged; the errors of the libraries have no common base.
    """
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
        for mark, (fact, way_out) in _OTHERS.items():
            if beginning.startswith(mark):
                raise OtherFileError(fact, way_out)
        if beginning[257:262] == b"ustar":
            raise OtherFileError("is a tar archive", "unpack it, and give the checkpoint in it")
        if beginning[8:9] == b"{":  # behind the header's length
            return load_safetensors(path)
        if beginning.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                if all(name.endswith(SUFFIX) for name in names):
                    return _arrays(archive, path.stat().st_size)
            _require_pickle(path, names)
        elif not beginning.startswith(b"\x80"):
            raise OtherFileError("is no checkpoint", "save the network's state_dict() with torch.save")
        return read_foreign_pickle(file)


def _require_pickle(path: Path, names: list[str]) -> None:
    """Refuse an archive of torch that holds a program and not a pickle of weights."""
    last = {name.rpartition("/")[2] for name in names}
    fact, way_out = _TORCHSCRIPT if "constants.pkl" in last else _EXPORTED
    if last & {"constants.pkl", "archive_format", "serialized_exported_program.json"}:
        raise OtherFileError(fact, way_out.replace("FILE", str(path)))
    if "data.pkl" not in last:
        raise OtherFileError("is a zip archive without weights", "unpack it, and give the checkpoint in it")


def _arrays(archive: zipfile.ZipFile, length: int) -> dict[str, Tensor]:
    """The arrays of numbers that an ``.npz`` holds, by name."""
    names = [name.removesuffix(SUFFIX) for name in archive.namelist()]
    headers = {name: header_of(archive, name) for name in names}
    numbers = {name: header for name, header in headers.items() if header.dtype.kind in "fiub"}
    for header in numbers.values():
        header.require_stored()
    declared = sum(header.declared for header in numbers.values())
    if declared > min(WEIGHTS_BYTES, _COMPRESSION * length):
        raise ValueError(f"it declares {format_bytes(declared)} of arrays and has {format_bytes(length)}")
    return {name: _tensor(array_of(archive, name)) for name in numbers}


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))
