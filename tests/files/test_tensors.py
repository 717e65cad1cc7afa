from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from acq.errors import RequestError
from acq.files.foreign import MoreThanWeightsError
from acq.files.inert import Inert
from acq.files.limits import WEIGHTS_BYTES
from acq.files.tensors import (
    from_safetensors,
    load_safetensors,
    read_foreign_pickle,
    read_pickle,
    require_weights_size,
)

Member = tuple[str, bytes]


def saved(value: Any, *, archive: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def rewritten(content: bytes, change: Callable[[list[Member]], list[Member]], kind: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with its members changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", kind) as new:
        for name, member in change([(name, old.read(name)) for name in old.namelist()]):
            new.writestr(name, member)
    return file.getvalue()


def calling(function: Any, *arguments: Any) -> Any:
    """A value whose pickle calls a function."""

    class Called:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, arguments

    return Called()


def declaring(count: int) -> bytes:
    """20 floats that are declared as ``count``, in the format of torch before 1.6."""
    content = saved({"w": torch.arange(20.0)}, archive=False)
    return content.replace(b"K\x14Nt", b"J" + struct.pack("<i", count) + b"Nt")


def header(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("archive", [True, False])
def test_files_of_torch_are_read(archive: bool) -> None:
    """Both formats, all dtypes, parameters, shared and cut storages, and other values around them."""
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    base = torch.arange(24.0)
    state: dict[str, Any] = {str(kind): torch.ones(3, dtype=kind) for kind in (*kinds, torch.uint8, torch.bool)}
    state |= {"whole": base, "part": base[4:8], "turned": base.view(4, 6).T, "none": torch.zeros(0, 3)}
    state |= {"parameter": nn.Parameter(torch.ones(2)), "size": torch.Size([2, 3]), "kind": torch.float16}
    value = {"state_dict": OrderedDict(state), "epoch": 3, "losses": [0.5, 1 << 40], "args": (None, True, {"a"})}
    found = read_pickle(io.BytesIO(saved(value, archive=archive)))
    assert list(found) == list(value)
    for name, wanted in state.items():
        given = found["state_dict"][name]
        assert torch.equal(given, wanted) if isinstance(wanted, Tensor) else given == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (declaring(2**31 - 1), r"declares 8 GiB of tensors and has 4\d\d bytes"),
        (saved({"w": torch.zeros(10**6)}, archive=False)[:600], "declares 3.81 MiB of tensors and has 600 bytes"),
        (rewritten(saved({"w": torch.zeros(10**6)}), lambda members: members, zipfile.ZIP_DEFLATED), "is compressed"),
        (
            rewritten(saved([torch.zeros(9)]), lambda members: [m for m in members if "data/" not in m[0]]),
            "has 0 bytes",
        ),
        (
            rewritten(
                saved([torch.zeros(9)]), lambda members: [(n, c[: 20 if "data/" in n else None]) for n, c in members]
            ),
            "36 bytes of tensors and has 20",
        ),
        (rewritten(saved([torch.zeros(9)]), lambda members: members[1:]), "no pickle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # files hold the time; workers must agree on names
)
def test_a_file_that_declares_more_than_it_has_never_reaches_torch(
    content: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is allocated for it."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    for read in (read_pickle, read_foreign_pickle):
        with pytest.raises(ValueError, match=words):
            read(io.BytesIO(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused() -> None:
    """Two readers could take different ones."""
    twice = rewritten(saved([torch.zeros(9)]), lambda members: [*members, members[-1]])
    with pytest.raises(ValueError, match="two members of one name"):
        read_pickle(io.BytesIO(twice))


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        calling(bytearray, 10**12),
        calling(torch.FloatTensor, 10**12),
        calling(torch.Tensor, 10**6, 10**6),
        torch.empty(10**13, device="meta"),
        torch.zeros(3).to_sparse(),
        calling(print, "hello"),
    ],
)
def test_a_pickle_of_more_than_plain_tensors_never_reaches_torch(
    archive: bool, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of 20 bytes can request a terabyte."""
    content = saved({"w": torch.zeros(1), "more": value}, archive=archive)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    for read in (read_pickle, read_foreign_pickle):
        with pytest.raises(MoreThanWeightsError):
            read(io.BytesIO(content))


@pytest.mark.parametrize("value", [Fraction(1, 2), Path("a"), np.float64(1), np.zeros(3), nn.ReLU()])
def test_a_foreign_object_is_read_only_where_it_is_allowed(value: Any) -> None:
    """A run's own state has none, and foreign checkpoints get a placeholder."""
    content = saved({"w": torch.zeros(1), "more": value})
    with pytest.raises(MoreThanWeightsError, match="names"):
        read_pickle(io.BytesIO(content))
    assert isinstance(read_foreign_pickle(io.BytesIO(content))["more"], Inert)


def test_safetensors_are_read_from_memory_and_from_files(tmp_path: Path) -> None:
    """Both give the saved tensors."""
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0)}
    (tmp_path / "a.safetensors").write_bytes(save(state))
    for found in (from_safetensors(save(state)), load_safetensors(tmp_path / "a.safetensors")):
        assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 10**14) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        header({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        header({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}) + bytes(4),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4 * 10**12, 4 * 10**12 + 4]}}) + bytes(4),
        b"",
        b"1234567",
    ],
)
def test_safetensors_that_declare_more_than_they_have_are_refused(content: bytes, tmp_path: Path) -> None:
    """In the header's length, a shape or an offset."""
    (tmp_path / "a.safetensors").write_bytes(content)
    for read in (lambda: from_safetensors(content), lambda: load_safetensors(tmp_path / "a.safetensors")):
        with pytest.raises(Exception, match=r"header|deserializ|metadata|offset|cover|empty|mmap"):
            read()


def test_weights_larger_than_any_network_s_are_refused(tmp_path: Path) -> None:
    """No byte of them is read."""
    with (tmp_path / "a.pth").open("wb") as file:
        file.truncate(WEIGHTS_BYTES + 1)
    with pytest.raises(RequestError, match=r"more than the limit of 16 GiB; save only the network's state_dict"):
        require_weights_size(tmp_path / "a.pth")
