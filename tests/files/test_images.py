from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.images import CIFAR_RECORD, LabelledImages, batches, normalise, read, to_bytes

COLOUR = Preprocessing((3, 8, 10), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Preprocessing((1, 8, 10), (0.5,), (0.25,))
RNG = np.random.default_rng(0)


def pixels(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *(shape or (8, 10, 3))), dtype=np.uint8)


def folder_of(path: Path, counts: dict[str, int], mode: str = "RGB") -> dict[str, np.ndarray]:
    """Sub-folders with so many images each, and what is in them."""
    made = {}
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(pixels(1)[0]).convert(mode)
            image.save(path / name / f"{i}.png")
            made[f"{name}/{i}"] = np.asarray(image)
    return made


def whole(data: LabelledImages) -> np.ndarray:
    return np.asarray(data.images[:])


def test_npz_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """Images and labels come back, and a limit keeps the first."""
    images, labels = pixels(5), np.array([0, 1, 2, 1, 0], dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    data = read(tmp_path / "d.npz", input_size=COLOUR.input_size, classes=3)
    assert np.array_equal(whole(data), images)
    assert data.labels.dtype == np.int64
    first = read(tmp_path / "d.npz", input_size=COLOUR.input_size, classes=3, limit=2)
    assert np.array_equal(whole(first), images[:2])
    assert list(first.labels) == [0, 1]


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 1)])
def test_grey_images_suit_a_network_with_one_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """[N, H, W] and [N, H, W, 1] are the same images."""
    images = pixels(3, *shape)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(3))
    data = read(tmp_path / "d.npz", input_size=GREY.input_size, classes=3)
    assert np.array_equal(whole(data), images.reshape(3, 8, 10, 1))
    assert next(batches(data, GREY))[0].shape == (3, 1, 8, 10)


@pytest.mark.parametrize(
    ("arrays", "fact"),
    [
        ({"images": pixels(2)}, "no array 'labels'"),
        ({"labels": np.arange(2)}, "no array 'images'"),
        ({"images": pixels(2).astype(np.float32), "labels": np.arange(2)}, "are float32"),
        ({"images": pixels(2), "labels": np.zeros(2)}, "labels .* are float64"),
        ({"images": pixels(2), "labels": np.eye(2, dtype=int)}, r"of shape \(2, 2\)"),
        ({"images": pixels(2), "labels": np.arange(3)}, "2 images and 3 labels"),
        ({"images": pixels(0), "labels": np.arange(0)}, "no images"),
        ({"images": pixels(2, 8, 8, 3), "labels": np.arange(2)}, r"\[2, 8, 8, 3\] .*\[N, 8, 10, 3\]"),
        ({"images": pixels(2, 3, 8, 10), "labels": np.arange(2)}, r"\[2, 3, 8, 10\]"),
        ({"images": pixels(2, 8, 10), "labels": np.arange(2)}, r"\[2, 8, 10\]"),
        ({"images": np.uint8(3), "labels": np.arange(2)}, r"are \[\] "),
        ({"images": pixels(2), "labels": np.array([1, 3])}, "from 1 to 3 .* 3 classes"),
        ({"images": pixels(2), "labels": np.array([-1, 0])}, "from -1 to 0"),
        ({"images": np.array([None, {}]), "labels": np.arange(2)}, "are object"),
    ],
)
def test_a_wrong_npz_is_told_in_a_line(tmp_path: Path, arrays: dict[str, Any], fact: str) -> None:
    """Each misfit names the file, the fact and a way out."""
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(RequestError, match=fact) as caught:
        read(tmp_path / "d.npz", input_size=COLOUR.input_size, classes=3)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def array(shape: tuple[int, ...], kind: str = "|u1", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's header without the array."""
    file = io.BytesIO()
    fields = {"descr": kind, "fortran_order": False, "shape": shape}
    write = {1: np.lib.format.write_array_header_1_0, 2: np.lib.format.write_array_header_2_0}[version[0]]
    write(file, fields)
    return file.getvalue()


def archive_of(path: Path, images: bytes, labels: bytes, claimed: int | None = None) -> None:
    """An archive of two arrays, of which the first may claim any size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels)
        if claimed is not None:
            archive.filelist[0].file_size = claimed + len(images)


MANY, FEW = (10**12, 8, 10, 3), array((3,), "<i8") + bytes(24)


@pytest.mark.parametrize(
    ("images", "labels", "claimed", "fact"),
    [
        (array(MANY), FEW, None, r"shape \(1000000000000, 8, 10, 3\) has 0 bytes, not 218 TiB"),
        (array(MANY), FEW, 240 * 10**12, r"array of 218 TiB, more than the 8 GiB that are read; give a folder"),
        (array((3, 8, 10, 3)) + bytes(720), array((10**13,), "<i8"), None, "not 72.8 TiB"),
        (array((-3, -8, 10, 3)) + bytes(720), FEW, None, "cannot be read"),
        (array((3, 8, 10, 3), version=(2, 0)) + bytes(720), FEW, None, "header of another version"),
        (b"\x93NUMPY\x01\x00\x06\x00((((((", FEW, None, "cannot be read"),
    ],
)
def test_an_npz_is_measured_before_anything_is_allocated(
    tmp_path: Path, images: bytes, labels: bytes, claimed: int | None, fact: str
) -> None:
    """What the archive and the arrays' headers claim is compared, and there is a limit."""
    path = tmp_path / "d.npz"
    archive_of(path, images, labels, claimed)
    assert path.stat().st_size < 2000
    tracemalloc.start()
    with pytest.raises(RequestError, match=fact) as caught:
        read(path, input_size=COLOUR.input_size, classes=3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_npz_is_told(tmp_path: Path, content: bytes) -> None:
    """A file that is no archive is a wrong request, not a traceback."""
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(RequestError, match=r"cannot be read as \.npz"):
        read(tmp_path / "d.npz", input_size=COLOUR.input_size, classes=3)


def test_a_truncated_npz_is_told(tmp_path: Path) -> None:
    """Half of a compressed archive is a wrong request, wherever the cut is noticed."""
    np.savez_compressed(tmp_path / "d.npz", images=pixels(9), labels=np.arange(9))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    content[200:400] = bytes(200)  # the directory at the end stays whole
    (tmp_path / "holes.npz").write_bytes(content)
    for name in ("half.npz", "holes.npz"):
        with pytest.raises(RequestError, match=r"cannot be read as \.npz"):
            read(tmp_path / name, input_size=COLOUR.input_size, classes=9)


@pytest.mark.parametrize(("name", "fact"), [("none", "no data at"), ("d.npy", "is not data that can be read")])
def test_what_is_no_data_is_told(tmp_path: Path, name: str, fact: str) -> None:
    """A missing path and an unknown kind of file say what may be given."""
    (tmp_path / "d.npy").touch()
    with pytest.raises(RequestError, match=fact):
        read(tmp_path / name, input_size=COLOUR.input_size, classes=3)


def test_a_limit_is_at_least_one(tmp_path: Path) -> None:
    """Nothing to evaluate is not a limit."""
    with pytest.raises(RequestError, match="at least 1"):
        read(tmp_path, input_size=COLOUR.input_size, classes=3, limit=0)


def test_a_folder_is_read_in_class_order_and_in_turns(tmp_path: Path) -> None:
    """Sorted names are the classes, images come class by class in turn, and files keep their pixels."""
    made = folder_of(tmp_path, {"cat": 1, "ant": 3, "bee": 2})
    data = read(tmp_path, input_size=COLOUR.input_size, classes=3)
    assert list(data.labels) == [0, 1, 2, 0, 1, 0]
    names = ["ant/0", "bee/0", "cat/0", "ant/1", "bee/1", "ant/2"]
    assert np.array_equal(whole(data), np.stack([made[name] for name in names]))


@given(limit=st.integers(1, 8))
def test_a_limit_keeps_the_first_and_sees_the_classes_evenly(
    tmp_path_factory: pytest.TempPathFactory, limit: int
) -> None:
    """A limited folder is the beginning of the whole, and no class is more than one image ahead."""
    path = tmp_path_factory.mktemp("folder")
    folder_of(path, {"a": 3, "b": 3, "c": 3})
    part = read(path, input_size=COLOUR.input_size, classes=3, limit=limit)
    every = read(path, input_size=COLOUR.input_size, classes=3)
    assert np.array_equal(whole(part), whole(every)[:limit])
    counts = np.bincount(part.labels, minlength=3)
    assert counts.max() - counts.min() <= 1


def test_names_that_are_numbers_count_as_such(tmp_path: Path) -> None:
    """Class 10 comes after class 2."""
    folder_of(tmp_path, {str(i): 1 for i in range(11)})
    data = read(tmp_path, input_size=COLOUR.input_size, classes=11)
    assert [path.parent.name for path in data.images.paths] == [str(i) for i in range(11)]  # type: ignore[attr-defined]


def test_some_of_the_classes_are_named_by_index(tmp_path: Path) -> None:
    """With fewer sub-folders than classes, numbered names are the labels and others are refused."""
    folder_of(tmp_path / "numbered", {"007": 1, "3": 1})
    assert list(read(tmp_path / "numbered", input_size=COLOUR.input_size, classes=10).labels) == [3, 7]
    folder_of(tmp_path / "named", {"dog": 1, "cat": 1})
    with pytest.raises(RequestError, match="2 sub-folders but the network has 10"):
        read(tmp_path / "named", input_size=COLOUR.input_size, classes=10)
    with pytest.raises(RequestError, match="class index, 0 to 4"):
        read(tmp_path / "numbered", input_size=COLOUR.input_size, classes=5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_every_kind_of_image_becomes_what_the_network_takes(tmp_path: Path, mode: str) -> None:
    """Grey, palette and transparent files give three channels, or one for a network with one."""
    folder_of(tmp_path, {"a": 1, "b": 1}, mode)
    assert whole(read(tmp_path, input_size=COLOUR.input_size, classes=2)).shape == (2, 8, 10, 3)
    assert whole(read(tmp_path, input_size=GREY.input_size, classes=2)).shape == (2, 8, 10, 1)


def empty(path: Path) -> None:
    (path / "a").mkdir()


def wrong_size(path: Path) -> None:
    empty(path)
    Image.new("RGB", (8, 8)).save(path / "a" / "small.jpg")


def deep(path: Path) -> None:
    empty(path)
    Image.fromarray(np.zeros((8, 10), dtype=np.uint16)).save(path / "a" / "deep.png")


def no_image(path: Path) -> None:
    empty(path)
    (path / "a" / "text.PNG").write_text("no image")


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda p: None, "no sub-folders"),
        (empty, "no images in the sub-folders"),
        (wrong_size, r"small\.jpg has 8x8 pixels but the network takes 8x10"),
        (deep, r"deep\.png has more than 8 bits"),
        (no_image, r"text\.PNG is a broken image"),
        (lambda p: folder_of(p, {"a": 1, "b": 1}), "2 sub-folders but the network has 1 class"),
    ],
)
def test_a_wrong_folder_is_told_in_a_line(tmp_path: Path, make: Callable[[Path], Any], fact: str) -> None:
    """Each misfit is found before the evaluation begins."""
    make(tmp_path)
    with pytest.raises(RequestError, match=fact) as caught:
        read(tmp_path, input_size=COLOUR.input_size, classes=1)
    assert "\n" not in str(caught.value)


def test_broken_images_are_named_counted_and_left_out(tmp_path: Path) -> None:
    """Those whose header is whole and whose pixels are not, too; labels stay with their images."""
    folder_of(tmp_path, {"a": 2, "b": 3})
    cut = tmp_path / "a" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-150])
    (tmp_path / "b" / "1.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"2 of 5 image files in .* are broken and left out: 0\.png, 1\.png"):
        data = read(tmp_path, input_size=COLOUR.input_size, classes=2)
    assert data.labels.tolist() == [1, 0, 1]
    assert sum(len(images) for images, _ in batches(data, COLOUR)) == 3


def large(side: int) -> bytes:
    """A PNG file that says it has ``side`` x ``side`` pixels and has none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def disguised() -> bytes:
    """A picture in a format that is not among those that are read."""
    file = io.BytesIO()
    Image.new("RGB", (10, 8)).save(file, "PPM")
    return file.getvalue()


@pytest.mark.parametrize("content", [large(8193), large(10**5), large(2**31 - 1), disguised()])
def test_an_image_that_claims_too_much_is_a_broken_one(tmp_path: Path, content: bytes) -> None:
    """As is one that is of another format than its name says; neither is decoded."""
    folder_of(tmp_path, {"a": 2})
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.warns(UserWarning, match=r"1 of 2 image files .*1\.png"):
        assert len(read(tmp_path, input_size=COLOUR.input_size, classes=1)) == 1


def test_an_image_that_may_not_be_read_is_not_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out for what the system refuses."""
    folder_of(tmp_path, {"a": 2})

    def refused(path: Path, **how: Any) -> Image.Image:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(RequestError, match=r"0\.png cannot be read \(Permission denied\)"):
        read(tmp_path, input_size=COLOUR.input_size, classes=1)


def test_an_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 1})
    data = read(tmp_path, input_size=COLOUR.input_size, classes=1)
    file = tmp_path / "a" / "0.png"
    file.write_bytes(file.read_bytes()[:-150])
    with pytest.raises(RequestError, match=r"0\.png is a broken image"):
        list(batches(data, COLOUR))


def test_files_are_decoded_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more images are in memory than a batch has."""
    folder_of(tmp_path, {"a": 5})
    data = read(tmp_path, input_size=COLOUR.input_size, classes=1)
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(path) or real(path, **how))
    next(batches(data, COLOUR, size=2))
    assert len(opened) == 2


def test_cifar_binary_files_are_read(tmp_path: Path) -> None:
    """A record is a label and three planes; the test batch goes before the training ones."""
    images, labels = pixels(3, 32, 32, 3), np.array([7, 0, 9], dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(3, -1)], 1)
    for name, part in (("data_batch_1", [0]), ("data_batch_2", [1, 2]), ("test_batch", [2, 1])):
        records[part].tofile(tmp_path / f"{name}.bin")
    size = (3, 32, 32)
    assert list(read(tmp_path, input_size=size, classes=10).labels) == [9, 0]
    single = read(tmp_path / "data_batch_2.bin", input_size=size, classes=10)
    assert np.array_equal(whole(single), images[1:])
    (tmp_path / "test_batch.bin").unlink()
    assert list(read(tmp_path, input_size=size, classes=10).labels) == [7, 0, 9]


def test_a_cut_cifar_file_is_told(tmp_path: Path) -> None:
    """A file that is not whole records is refused by name."""
    (tmp_path / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(RequestError, match=r"test_batch\.bin has 3000 bytes"):
        read(tmp_path, input_size=(3, 32, 32), classes=10)


def test_a_cifar_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Before it is read."""
    with (tmp_path / "test_batch.bin").open("wb") as file:
        file.truncate(CIFAR_RECORD * 10**9)
    with pytest.raises(
        RequestError, match=r"test_batch\.bin has 2\.79 TiB, more than the 8 GiB .*; it is no CIFAR-10 file"
    ):
        read(tmp_path, input_size=(3, 32, 32), classes=10)


def test_normalised_pixels_equal_the_formula() -> None:
    """(pixels / 255 - mean) / std, channel by channel."""
    images = pixels(4)
    expected = (images / 255 - np.array(COLOUR.mean)) / np.array(COLOUR.std)
    assert torch.allclose(normalise(images, COLOUR), torch.tensor(expected).permute(0, 3, 1, 2).float(), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_bytes_survive_normalisation(seed: int) -> None:
    """``to_bytes`` is the exact inverse of ``normalise`` on bytes, and clips what is outside."""
    images = np.random.default_rng(seed).integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)
    assert np.array_equal(to_bytes(normalise(images, COLOUR), COLOUR), images)
    assert set(np.unique(to_bytes(torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1), GREY))) == {0, 255}


@given(st.integers(1, 12))
def test_batches_cover_the_data_once_and_in_order(size: int) -> None:
    """Whatever the size of a batch, joined they are the data."""
    data = LabelledImages(pixels(7), np.arange(7))
    images, labels = zip(*batches(data, COLOUR, size), strict=True)
    assert torch.equal(torch.cat(images), normalise(data.images[:], COLOUR))
    assert torch.cat(labels).tolist() == list(range(7))
    assert max(map(len, images)) <= size
