from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq.errors import RequestError
from acq.files.arrays import CIFAR_RECORD, is_cifar_folder, read_cifar, read_npz


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (8, 10, 3))), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_come_back(tmp_path: Path, save: Any) -> None:
    """Images and labels are read as they were saved."""
    images, labels = pixels(5), np.array([0, 1, 2, 1, 0], dtype=np.uint8)
    save(tmp_path / "d.npz", images=images, labels=labels)
    found_images, found_labels = read_npz(tmp_path / "d.npz", 3)
    assert np.array_equal(found_images, images)
    assert np.array_equal(found_labels, labels)


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 1)])
def test_grey_images_need_no_channel_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """For a network with one channel, [N, H, W] and [N, H, W, 1] are the same images."""
    images = pixels(3, *shape)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(3))
    assert np.array_equal(read_npz(tmp_path / "d.npz", 1)[0], images.reshape(3, 8, 10, 1))


@pytest.mark.parametrize(
    ("arrays", "fact"),
    [
        ({"images": pixels(2)}, "no array 'labels'"),
        ({"labels": np.arange(2)}, "no array 'images'"),
        ({"images": pixels(2).astype(np.float32), "labels": np.arange(2)}, "are float32"),
        ({"images": pixels(2), "labels": np.zeros(2)}, "labels .* are float64"),
        ({"images": pixels(2), "labels": np.zeros((2, 1, 1, 1), int)}, r"of shape \(2, 1, 1, 1\)"),
        ({"images": np.array([None, {}]), "labels": np.arange(2)}, "are object"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], fact: str) -> None:
    """One line names the file, the fact and the way out; arrays of objects, which need pickle, are refused too."""
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(RequestError, match=fact) as caught:
        read_npz(tmp_path / "d.npz", 3)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def header(shape: tuple[int, ...], kind: str = "|u1", version: int = 1) -> bytes:
    """An array's header without the array."""
    file = io.BytesIO()
    write = {1: np.lib.format.write_array_header_1_0, 2: np.lib.format.write_array_header_2_0}[version]
    write(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive_of(path: Path, images: bytes, labels: bytes, declared: int | None = None) -> None:
    """An archive of two arrays; its directory may declare any size of the first."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels)
        if declared is not None:
            archive.filelist[0].file_size = declared + len(images)


MANY, FEW = (10**12, 8, 10, 3), header((3,), "<i8") + bytes(24)


@pytest.mark.parametrize(
    ("images", "labels", "declared", "fact"),
    [
        (header(MANY), FEW, None, r"shape \(1000000000000, 8, 10, 3\) has 0 bytes, not 218 TiB"),
        (header(MANY), FEW, 240 * 10**12, r"array of 218 TiB, more than the limit of 8 GiB; give a folder"),
        (header((3, 8, 10, 3)) + bytes(720), header((10**13,), "<i8"), None, "not 72.8 TiB"),
        (header((-3, -8, 10, 3)) + bytes(720), FEW, None, "cannot be read"),
        (header((3, 8, 10, 3), version=2) + bytes(720), FEW, None, "header of another version"),
        (b"\x93NUMPY\x01\x00\x06\x00((((((", FEW, None, "cannot be read"),
    ],
)
def test_an_npz_is_measured_before_any_allocation(
    tmp_path: Path, images: bytes, labels: bytes, declared: int | None, fact: str
) -> None:
    """A file of 2 kB that declares terabytes is refused with less than 1 MiB of memory."""
    path = tmp_path / "d.npz"
    archive_of(path, images, labels, declared)
    assert path.stat().st_size < 2000
    tracemalloc.start()
    with pytest.raises(RequestError, match=fact) as caught:
        read_npz(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no archive gives one line and no traceback."""
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(RequestError, match=r"cannot be read as \.npz"):
        read_npz(tmp_path / "d.npz", 3)


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    """Half of an archive, or one with a hole whose directory is whole, gives one line and no traceback."""
    np.savez_compressed(tmp_path / "d.npz", images=pixels(9), labels=np.arange(9))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    content[200:400] = bytes(200)
    (tmp_path / "hole.npz").write_bytes(content)
    for name in ("half.npz", "hole.npz"):
        with pytest.raises(RequestError, match=r"cannot be read as \.npz"):
            read_npz(tmp_path / name, 3)


def cifar_folder(path: Path) -> np.ndarray:
    """Three images in two training files, and the last two of them, in reverse, in the test file."""
    images, labels = pixels(3, 32, 32, 3), np.array([7, 0, 9], dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(3, -1)], 1)
    for name, part in (("data_batch_1", [0]), ("data_batch_2", [1, 2]), ("test_batch", [2, 1])):
        records[part].tofile(path / f"{name}.bin")
    return images


def test_cifar_records_are_a_label_and_three_planes(tmp_path: Path) -> None:
    """One file gives its images and labels."""
    images = cifar_folder(tmp_path)
    found, labels = read_cifar(tmp_path / "data_batch_2.bin")
    assert np.array_equal(found, images[1:])
    assert labels.tolist() == [0, 9]


def test_a_cifar_folder_gives_the_test_batch_first(tmp_path: Path) -> None:
    """Without ``test_batch.bin`` the training files are read in order."""
    assert not is_cifar_folder(tmp_path)
    cifar_folder(tmp_path)
    assert is_cifar_folder(tmp_path)
    assert read_cifar(tmp_path)[1].tolist() == [9, 0]
    (tmp_path / "test_batch.bin").unlink()
    assert read_cifar(tmp_path)[1].tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("name", "size", "fact"),
    [
        ("test_batch.bin", 3000, r"test_batch\.bin has 3000 bytes"),
        ("test_batch.bin", 0, r"test_batch\.bin has 0 bytes"),
        ("test_batch.bin", CIFAR_RECORD * 10**9, r"has 2\.79 TiB, more than the limit of 8 GiB; it is no CIFAR-10"),
        ("other_batch.bin", CIFAR_RECORD, "has neither test_batch"),
    ],
)
def test_other_cifar_files_are_refused(tmp_path: Path, name: str, size: int, fact: str) -> None:
    """Cut, empty, too large (before it is read) and unknown files are refused by name."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)  # a sparse file, which takes no space
    with pytest.raises(RequestError, match=fact):
        read_cifar(tmp_path)
