from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.image_files import BrokenImageError, open_image, read_class_folders

COLOUR = Preprocessing((3, 8, 10), (0.5,) * 3, (0.5,) * 3)
GREY = Preprocessing((1, 8, 10), (0.5,), (0.5,))


def folder_of(path: Path, counts: dict[str, int], mode: str = "RGB") -> dict[str, np.ndarray]:
    """Sub-folders with so many images each; the pixels by sub-folder and number."""
    rng, made = np.random.default_rng(0), {}
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).convert(mode)
            image.save(path / name / f"{i}.png")
            made[f"{name}/{i}"] = np.asarray(image)
    return made


def test_images_come_in_class_order_and_in_turns(tmp_path: Path) -> None:
    """Sorted names are the classes, each class gives one image per turn, and pixels are unchanged."""
    made = folder_of(tmp_path, {"cat": 1, "ant": 3, "bee": 2})
    images, labels, others = read_class_folders(tmp_path, COLOUR, 3)
    assert others == 0
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 0, 1, 0]
    names = ["ant/0", "bee/0", "cat/0", "ant/1", "bee/1", "ant/2"]
    assert np.array_equal(images[:], np.stack([made[name] for name in names]))


@given(limit=st.integers(1, 8))
def test_a_limit_keeps_the_first_images_and_covers_classes_evenly(
    tmp_path_factory: pytest.TempPathFactory, limit: int
) -> None:
    """A limited folder is the beginning of the whole, and no class is more than one image ahead."""
    path = tmp_path_factory.mktemp("folder")
    folder_of(path, {"a": 3, "b": 3, "c": 3})
    part, labels, _ = read_class_folders(path, COLOUR, 3, limit)
    whole, _, _ = read_class_folders(path, COLOUR, 3)
    assert np.array_equal(part[:], whole[:limit])
    counts = np.bincount(labels, minlength=3)
    assert counts.max() - counts.min() <= 1


def test_names_that_are_numbers_sort_as_numbers(tmp_path: Path) -> None:
    """Class 10 comes after class 2."""
    folder_of(tmp_path, {str(i): 1 for i in range(11)})
    images, _, _ = read_class_folders(tmp_path, COLOUR, 11)
    assert [path.parent.name for path in images.paths] == [str(i) for i in range(11)]


def test_fewer_folders_than_classes_are_named_by_index(tmp_path: Path) -> None:
    """Numbers are the labels; other names, and numbers beyond the classes, are refused."""
    folder_of(tmp_path / "numbered", {"007": 1, "3": 1})
    assert read_class_folders(tmp_path / "numbered", COLOUR, 10)[1].tolist() == [3, 7]
    folder_of(tmp_path / "named", {"dog": 1, "cat": 1})
    with pytest.raises(RequestError, match="2 sub-folders but the network has 10"):
        read_class_folders(tmp_path / "named", COLOUR, 10)
    with pytest.raises(RequestError, match="class index, 0 to 4"):
        read_class_folders(tmp_path / "numbered", COLOUR, 5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted_to_the_network_s_channels(tmp_path: Path, mode: str, channels: int) -> None:
    """Grey, palette and transparent files give one channel or three."""
    folder_of(tmp_path, {"a": 1, "b": 1}, mode)
    images, _, _ = read_class_folders(tmp_path, GREY if channels == 1 else COLOUR, 2)
    assert images[:].shape == (2, 8, 10, channels)


def empty(path: Path) -> None:
    (path / "a").mkdir()


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
        (deep, r"deep\.png has more than 8 bits"),
        (no_image, r"all 1 image files .*text\.PNG is a broken image"),
        (lambda p: folder_of(p, {"a": 1, "b": 1}), "2 sub-folders but the network has 1 class"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, make: Callable[[Path], Any], fact: str) -> None:
    """Each misfit gives one line before the evaluation begins."""
    make(tmp_path)
    with pytest.raises(RequestError, match=fact) as caught:
        read_class_folders(tmp_path, COLOUR, 1)
    assert "\n" not in str(caught.value)


def test_other_channels_need_an_npz(tmp_path: Path) -> None:
    """Image files have one channel or three."""
    with pytest.raises(RequestError, match=r"takes 2 channels .* give a \.npz"):
        read_class_folders(tmp_path, replace(COLOUR, input_size=(2, 8, 10)), 3)


def test_broken_images_are_named_counted_and_left_out(tmp_path: Path) -> None:
    """A file with a whole header and cut pixels counts too; labels stay with their images."""
    folder_of(tmp_path, {"a": 2, "b": 3})
    cut = tmp_path / "a" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-150])
    (tmp_path / "b" / "1.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"2 of 5 image files in .* are broken and left out: 0\.png, 1\.png"):
        images, labels, _ = read_class_folders(tmp_path, COLOUR, 2)
    assert labels.tolist() == [1, 0, 1]
    assert images[:].shape == (3, 8, 10, 3)


def test_a_warning_names_five_files_at_most(tmp_path: Path) -> None:
    """The rest is in the count."""
    folder_of(tmp_path, {"a": 7})
    for i in range(6):
        (tmp_path / "a" / f"{i}.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"6 of 7 .*: 0\.png, 1\.png, 2\.png, 3\.png, 4\.png, \.\.\.$"):
        read_class_folders(tmp_path, COLOUR, 1)


def bomb(side: int) -> bytes:
    """A PNG file that declares ``side`` x ``side`` pixels and has none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def disguised() -> bytes:
    """An image in a format that is not read."""
    file = io.BytesIO()
    Image.new("RGB", (10, 8)).save(file, "PPM")
    return file.getvalue()


@pytest.mark.parametrize("content", [bomb(8193), bomb(10**5), bomb(2**31 - 1), disguised()])
def test_bombs_and_other_formats_are_not_decoded(tmp_path: Path, content: bytes) -> None:
    """They count as broken files; the format is that of the content, not of the name."""
    folder_of(tmp_path, {"a": 2})
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.raises((OSError, ValueError)), open_image(tmp_path / "a" / "1.png"):
        pass
    with pytest.warns(UserWarning, match=r"1 of 2 image files .*1\.png"):
        assert len(read_class_folders(tmp_path, COLOUR, 1)[0]) == 1


def test_pictures_of_other_sizes_are_framed_and_counted(tmp_path: Path) -> None:
    """Those of the network's size stay as they are."""
    made = folder_of(tmp_path, {"a": 2})
    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "a" / "big.jpg")
    images, _, others = read_class_folders(tmp_path, COLOUR, 1)
    assert others == 1
    assert np.array_equal(images[:2], np.stack([made["a/0"], made["a/1"]]))
    assert images[:].shape == (3, 8, 10, 3)
    assert np.ptp(images[2:][0], axis=(0, 1)).tolist() == [0, 0, 0]


def test_a_file_that_the_system_refuses_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its image may be whole, so it is an error."""
    folder_of(tmp_path, {"a": 2})

    def refused(path: Path, **how: Any) -> Image.Image:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(RequestError, match=r"0\.png cannot be read \(Permission denied\)"):
        read_class_folders(tmp_path, COLOUR, 1)


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    """Files are decoded again when they are sliced."""
    folder_of(tmp_path, {"a": 1})
    images, _, _ = read_class_folders(tmp_path, COLOUR, 1)
    file = tmp_path / "a" / "0.png"
    file.write_bytes(file.read_bytes()[:-150])
    with pytest.raises(BrokenImageError, match=r"0\.png is a broken image"):
        images[:]


def test_only_the_slice_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of two images opens two files."""
    folder_of(tmp_path, {"a": 5})
    images, _, _ = read_class_folders(tmp_path, COLOUR, 1)
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(path) or real(path, **how))
    assert len(images[1:3]) == 2
    assert [path.name for path in opened] == ["1.png", "2.png"]
