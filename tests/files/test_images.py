from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acq.core.outputs import Output
from acq.core.pixels import from_bytes
from acq.core.values import Framing, Preprocessing
from acq.errors import Note, RequestError
from acq.files.arrays import CIFAR_RECORD
from acq.files.framing import FramedImages
from acq.files.images import LabelledImages, batches, read

THREE = Output.of("class", 3)
COLOUR = Preprocessing((3, 8, 10), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (8, 10, 3))), dtype=np.uint8)


def npz(path: Path) -> tuple[Path, Any]:
    np.savez(path / "d.npz", images=pixels(3), labels=np.arange(3, dtype=np.uint8))
    return path / "d.npz", (3, 8, 10)


def class_folders(path: Path) -> tuple[Path, Any]:
    for label, image in enumerate(pixels(3)):
        (path / str(label)).mkdir()
        Image.fromarray(image).save(path / str(label) / "0.png")
    return path, (3, 8, 10)


def cifar(path: Path) -> tuple[Path, Any]:
    file = path / "test_batch.bin"
    records = pixels(3, CIFAR_RECORD)
    records[:, 0] = range(3)
    records.tofile(file)
    return file, (3, 32, 32)


def cifar_folder(path: Path) -> tuple[Path, Any]:
    return cifar(path)[0].parent, (3, 32, 32)


@pytest.mark.parametrize("make", [npz, class_folders, cifar, cifar_folder])
def test_every_form_gives_images_and_labels(tmp_path: Path, make: Any) -> None:
    """uint8 [N, H, W, C] and int64 [N]; a limit keeps the first."""
    path, size = make(tmp_path)
    data = read(path, preprocessing=Preprocessing(size, (0.5,) * 3, (0.2,) * 3), output=THREE)
    assert (data.images[:].shape, data.images[:].dtype) == ((3, *size[1:], 3), np.uint8)
    assert (data.labels.tolist(), data.labels.dtype) == ([0, 1, 2], np.int64)
    first = read(path, preprocessing=Preprocessing(size, (0.5,) * 3, (0.2,) * 3), output=THREE, limit=2)
    assert len(first) == 2
    assert np.array_equal(first.images[:], data.images[:2])


@pytest.mark.parametrize(
    ("images", "labels", "fact"),
    [
        (pixels(2), np.arange(3), "2 images and 3 labels"),
        (pixels(0), np.arange(0), "no images"),
        (pixels(2, 8, 10, 1), np.arange(2), r"\[2, 8, 10, 1\] .*\[N, 8, 10, 3\]"),
        (pixels(2, 8, 0, 3), np.arange(2), r"\[2, 8, 0, 3\] .*\[N, 8, 10, 3\]"),
        (pixels(2, 3, 8, 10), np.arange(2), r"\[2, 3, 8, 10\]"),
        (pixels(2, 8, 10), np.arange(2), r"\[2, 8, 10\]"),
        (np.uint8(3), np.arange(2), r"are \[\] "),
        (pixels(2), np.array([1, 3]), "from 1 to 3 .* 3 classes"),
        (pixels(2), np.array([-1, 0]), "from -1 to 0"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, fact: str
) -> None:
    """One line names the file, the fact and the way out."""
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    with pytest.raises(RequestError, match=fact) as caught:
        read(tmp_path / "d.npz", preprocessing=COLOUR, output=THREE)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "fact"), [("none", "no data at"), ("d.npy", "is not a form of data")])
def test_other_paths_say_what_to_give(tmp_path: Path, name: str, fact: str) -> None:
    """A missing path and an unknown kind of file."""
    (tmp_path / "d.npy").touch()
    with pytest.raises(RequestError, match=rf"{fact}.*; give a \.npz file, a folder"):
        read(tmp_path / name, preprocessing=COLOUR, output=THREE)


def test_a_limit_is_at_least_one(tmp_path: Path) -> None:
    """An evaluation without images is refused."""
    with pytest.raises(RequestError, match="at least 1"):
        read(tmp_path, preprocessing=COLOUR, output=THREE, limit=0)


@given(st.integers(1, 12))
def test_batches_cover_the_data_once_and_in_order(size: int) -> None:
    """Joined batches of any size are the data, normalised."""
    data = LabelledImages(pixels(7), np.arange(7))
    images, labels = zip(*batches(data, COLOUR, size), strict=True)
    assert torch.equal(torch.cat(images), from_bytes(data.images[:], COLOUR))
    assert torch.cat(labels).tolist() == list(range(7))
    assert max(map(len, images)) <= size


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        (np.eye(3, 4, dtype=np.uint8), Output.of("multilabel", 4)),
        (np.eye(3, 4, dtype=bool), Output.of("multilabel", 4)),
        (np.array([0, 1, 1]), Output.of("multilabel", 1)),
        (np.array([[0], [1], [1]]), Output.of("multilabel", 1)),
    ],
)
def test_labels_of_yes_and_no_are_read(labels: np.ndarray, output: Output, tmp_path: Path) -> None:
    """A row per image, or one number where there is one label."""
    np.savez(tmp_path / "d.npz", images=pixels(3), labels=labels)
    data = read(tmp_path / "d.npz", preprocessing=COLOUR, output=output)
    assert np.array_equal(data.labels, labels.astype(int))
    ((_, found),) = batches(data, COLOUR)
    assert torch.equal(found, torch.from_numpy(labels.astype(int)))


def test_two_folders_answer_no_and_yes(tmp_path: Path) -> None:
    """They are the classes of one label; for several labels folders are refused."""
    for name, image in zip(("ham", "spam"), pixels(2), strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "0.png")
    data = read(tmp_path, preprocessing=COLOUR, output=Output.of("multilabel", 1))
    assert data.labels.tolist() == [0, 1]
    with pytest.raises(RequestError, match=r"4 labels, yes or no each; give a \.npz file .*\[N, 4\]"):
        read(tmp_path, preprocessing=COLOUR, output=Output.of("multilabel", 4))


@pytest.mark.parametrize(
    ("labels", "output", "fact"),
    [
        (np.arange(3), Output.of("multilabel", 4), r"are \[3\]; the network takes 0 and 1, \[N, 4\]"),
        (np.eye(3, dtype=int), Output.of("multilabel", 4), r"are \[3, 3\]; the network takes 0 and 1, \[N, 4\]"),
        (np.eye(3, dtype=int), THREE, r"are \[3, 3\]; the network takes class indices, \[N\]"),
        (
            np.zeros((3, 2, 2), int),
            Output.of("map", 5, 8),
            r"are \[3, 2, 2\]; the network takes class indices per cell, \[N, W\]",
        ),
        (
            2 * np.eye(3, 4, dtype=int),
            Output.of("multilabel", 4),
            "go from 0 to 2 but the network says no or yes; give 0",
        ),
    ],
)
def test_labels_of_another_shape_are_refused(labels: np.ndarray, output: Output, fact: str, tmp_path: Path) -> None:
    """The line has the shape, or the values, and what is wanted."""
    np.savez(tmp_path / "d.npz", images=pixels(3), labels=labels)
    with pytest.raises(RequestError, match=fact):
        read(tmp_path / "d.npz", preprocessing=COLOUR, output=output)


@pytest.mark.parametrize("form", ["npz", "folders"])
def test_pictures_of_another_size_are_framed_with_a_note(tmp_path: Path, form: str) -> None:
    """In an array as in files, the same pixels."""
    images = pixels(2, 20, 30, 3)
    if form == "npz":
        np.savez(tmp_path / "d.npz", images=images, labels=np.arange(2))
    else:
        for label, image in enumerate(images):
            (tmp_path / f"{label}").mkdir()
            Image.fromarray(image).save(tmp_path / f"{label}" / "0.png")
    path = tmp_path / "d.npz" if form == "npz" else tmp_path
    with pytest.warns(
        Note, match=r"2 of 2 images have another size than 8x10: they are resized to cover 1\.125 times that size"
    ):
        data = read(path, preprocessing=COLOUR, output=Output.of("class", 2))
    assert np.array_equal(data.images[:], FramedImages(images, COLOUR)[:])


def test_folders_are_read_by_the_names_of_classes(tmp_path: Path) -> None:
    """In the order of the names, and a class may have no folder."""
    for name, image in zip(("zebra", "ape"), pixels(2, 8, 10, 3), strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "0.png")
    data = read(tmp_path, preprocessing=COLOUR, output=THREE, names=("zebra", "lion", "ape"))
    assert data.labels.tolist() == [0, 2]
    with pytest.raises(RequestError, match="zebra is named after no class"):
        read(tmp_path, preprocessing=COLOUR, output=THREE, names=("a", "lion", "ape"))


def test_names_may_be_numbers_in_another_order(tmp_path: Path) -> None:
    """Folders that all are names of classes are read as such; other numbers are class indices."""
    for name, image in zip(("1", "0"), pixels(2, 8, 10, 3), strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "0.png")
    read_as = {("1", "2", "0"): [0, 2], ("a", "b", "c"): [0, 1]}
    for names, labels in read_as.items():
        assert read(tmp_path, preprocessing=COLOUR, output=THREE, names=names).labels.tolist() == labels


def test_the_name_of_a_label_is_no_folder(tmp_path: Path) -> None:
    """The folders of one yes-or-no answer are no and yes."""
    for name, image in zip(("no", "yes"), pixels(2, 8, 10, 3), strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "0.png")
    data = read(tmp_path, preprocessing=COLOUR, output=Output.of("multilabel", 1), names=("defect",))
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("framing", "fact"),
    [
        (Framing(7), "pictures are resized below the network's size; give a framing of at least 8 pixels"),
        (Framing(9, "lanczos"), "the interpolation is 'lanczos'; give .* in one of bilinear, bicubic"),
    ],
)
def test_a_framing_by_hand_is_checked(framing: Framing, fact: str, tmp_path: Path) -> None:
    """Nothing is resized by it."""
    np.savez(tmp_path / "d.npz", images=pixels(2, 20, 30, 3), labels=np.arange(2))
    with pytest.raises(RequestError, match=fact):
        read(tmp_path / "d.npz", preprocessing=replace(COLOUR, framing=framing), output=Output.of("class", 2))


def test_labels_with_places_need_images_of_the_network_s_size(tmp_path: Path) -> None:
    """A crop would move the pixels away from their labels."""
    np.savez(tmp_path / "d.npz", images=pixels(2, 20, 30, 3), labels=np.zeros((2, 20, 30), int))
    with pytest.raises(RequestError, match="are 20x30 and their labels have places"):
        read(tmp_path / "d.npz", preprocessing=COLOUR, output=Output.of("map", 3, 8, 10))
