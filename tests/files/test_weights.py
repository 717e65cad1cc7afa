from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acq.files.weights import OtherFileError, read_weights


def test_the_kind_is_told_by_content(tmp_path: Path) -> None:
    """Each kind under the same name gives the same tensors."""
    path, npz = tmp_path / "weights", tmp_path / "weights.npz"
    wanted = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    arrays = {name: value.numpy() for name, value in wanted.items()}
    swapped = {name: value.astype(value.dtype.newbyteorder()) for name, value in arrays.items()}
    writers = [
        lambda: torch.save(wanted, path),
        lambda: torch.save(wanted, path, _use_new_zipfile_serialization=False),
        lambda: save_file(wanted, path),
        lambda: (np.savez(npz, **arrays), npz.replace(path)),
        lambda: (np.savez_compressed(npz, **arrays), npz.replace(path)),
        lambda: (np.savez(npz, **swapped), npz.replace(path)),
    ]
    for write in writers:
        write()
        found = read_weights(path)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_arrays_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    """Text and objects, which would need a pickle."""
    np.savez(tmp_path / "a.npz", w=np.zeros(2), name=np.array(["x"]), object=np.array([1, "x"], dtype=object))
    assert list(read_weights(tmp_path / "a.npz")) == ["w"]


def archive(path: Path, header: str, content: bytes, kind: int) -> None:
    file = io.BytesIO()
    text = header.encode().ljust(117) + b"\n"
    file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr("w.npy", file.getvalue())


@pytest.mark.parametrize(
    ("shape", "content", "kind", "words"),
    [
        ((10**12,), b"1234", zipfile.ZIP_STORED, "has 4 bytes, not"),
        ((1,), b"12345678", zipfile.ZIP_STORED, "has 8 bytes, not 4 bytes"),
        ((-1,), b"1234", zipfile.ZIP_STORED, "has 4 bytes"),
        ((10**6,), bytes(4 * 10**6), zipfile.ZIP_DEFLATED, "declares 3.81 MiB of arrays and has"),
    ],
)
def test_arrays_that_declare_more_than_the_file_has_are_never_read(
    shape: tuple[int, ...], content: bytes, kind: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a header, or by compression."""
    archive(tmp_path / "a.npz", f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}", content, kind)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("numpy read it"))
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("names", [["a.txt"], ["a/version", "a/archive_format"], ["x.npy", "y.txt"], []])
def test_other_archives_are_named(names: list[str], tmp_path: Path) -> None:
    """An archive without weights is no damaged checkpoint."""
    with zipfile.ZipFile(tmp_path / "a", "w") as made:
        for name in names:
            made.writestr(name, b"x")
    with pytest.raises(OtherFileError, match=r"zip archive without|torch.export|no checkpoint"):
        read_weights(tmp_path / "a")
