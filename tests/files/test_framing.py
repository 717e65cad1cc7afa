from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.files.framing import FramedImages, framed, framing_of, told


def known(height: int, width: int, framing: Framing | None = None, channels: int = 1) -> Preprocessing:
    return Preprocessing((channels, height, width), (0.5,) * channels, (0.5,) * channels, framing)


def picture(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(((37 * y + 11 * x + 5 * x * y) % 256).astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "interpolation", "pixels"),
    [
        (30, 21, "bilinear", [[130, 132, 130, 125], [121, 134, 135, 125], [138, 129, 131, 137], [126, 115, 128, 122]]),
        (30, 21, "bicubic", [[130, 132, 130, 125], [119, 135, 136, 123], [141, 130, 129, 141], [125, 113, 129, 122]]),
        (21, 30, "bilinear", [[129, 126, 133, 128], [137, 133, 127, 131], [130, 125, 129, 128], [134, 125, 121, 131]]),
        (21, 30, "bicubic", [[130, 125, 134, 128], [139, 133, 124, 133], [130, 125, 128, 126], [135, 122, 121, 130]]),
        (5, 4, "bilinear", [[28, 38, 50, 62], [59, 72, 87, 102], [89, 106, 124, 142], [120, 139, 161, 183]]),
        (5, 4, "bicubic", [[25, 35, 48, 61], [58, 71, 87, 103], [88, 105, 124, 143], [121, 140, 163, 186]]),
        (33, 9, "bilinear", [[103, 138, 111, 153], [89, 132, 131, 126], [152, 111, 152, 131], [154, 154, 134, 143]]),
        (33, 9, "bicubic", [[94, 148, 107, 157], [82, 133, 132, 124], [159, 106, 153, 130], [158, 158, 136, 149]]),
    ],
)
def test_pixels_are_those_of_torchvision(height: int, width: int, interpolation: str, pixels: list[list[int]]) -> None:
    """Stored values of torchvision 0.28.0: ``Resize(5)`` with antialias, then ``CenterCrop(4)``."""
    shown = framed(picture(height, width), known(4, 4, Framing(5, interpolation)))
    assert np.asarray(shown).tolist() == pixels


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40), st.integers(0, 20)
)  # fmt: skip
def test_every_picture_gets_the_network_s_size(height: int, width: int, tall: int, wide: int, more: int) -> None:
    """Of equal sides or not, enlarged or reduced; a grey picture stays grey."""
    shown = framed(Image.new("L", (width, height), 7), known(tall, wide, Framing(min(tall, wide) + more)))
    assert (shown.height, shown.width) == (tall, wide)
    assert set(np.asarray(shown).flat) == {7}


def test_unequal_sides_keep_the_shape_of_what_is_seen() -> None:
    """A circle stays a circle: a picture twice as wide as the network's input is cut at both sides."""
    y, x = np.mgrid[:80, :240]
    circle = Image.fromarray(np.where((y - 40) ** 2 + (x - 120) ** 2 < 30**2, 255, 0).astype(np.uint8))
    seen = np.asarray(framed(circle, known(40, 60, Framing(40)))) > 127
    tall, wide = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    assert len(tall) == len(wide) == 30
    assert (tall.mean(), wide.mean()) == (19.5, 29.5)


def test_the_usual_framing_is_a_crop_of_seven_eighths() -> None:
    """As of most ImageNet networks: 224 of 256 pixels. What is known comes first."""
    assert framing_of(known(224, 224)) == Framing(256, "bilinear")
    assert framing_of(known(224, 320)) == Framing(256, "bilinear")
    assert framing_of(known(224, 224, Framing(232, "bicubic"))) == Framing(232, "bicubic")


def test_a_picture_that_would_become_too_large_is_refused() -> None:
    """A line of pixels becomes as many thousands high."""
    words = r"9000x1 pixels become 2304000x256 before the crop"
    with pytest.raises(ValueError, match=words):
        framed(Image.new("L", (1, 9000)), known(224, 224))
    with pytest.raises(RequestError, match=f"images of {words}.*; give images of other sides"):
        FramedImages(np.zeros((1, 9000, 1, 1), np.uint8), known(224, 224))[:]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_framed_when_they_are_sliced(channels: int) -> None:
    """Each picture as if it were a file."""
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, channels), dtype=np.uint8)
    data = FramedImages(images, known(8, 10, None, channels))
    assert len(data) == 5
    assert (data[1:4].shape, data[1:4].dtype) == ((3, 8, 10, channels), np.uint8)
    one = Image.fromarray(images[2, ..., 0] if channels == 1 else images[2])
    assert np.array_equal(data[2:3].squeeze(), np.asarray(framed(one, known(8, 10, None, channels))))


def test_the_note_says_what_was_done() -> None:
    """With the number of pictures, and the option that changes it."""
    assert told(known(224, 224, Framing(232, "bicubic")), 1000, 1200) == (
        "1,000 of 1,200 images have another size than 224x224: the shorter side is resized to 232 pixels (bicubic), "
        "and the centre is taken; --resize changes that"
    )
    assert "they are resized to cover 1.125 times that size (bilinear)" in told(known(8, 10), 1, 1)
