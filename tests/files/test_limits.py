from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from acq.errors import RequestError
from acq.files.limits import DOCUMENT_BYTES, GIB, format_bytes, images_at_once, read_bytes, require_size


@pytest.mark.parametrize("size", [DOCUMENT_BYTES + 1, 4096 * GIB])
def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, size: int) -> None:
    """The system's figure decides, and the line names the way out."""
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(size)  # a sparse file, which takes no space
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"a\.json has .*iB, more than the limit of 64 MiB; quantize again"):
        read_bytes(path, DOCUMENT_BYTES, "quantize again")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_device_is_read_up_to_the_limit() -> None:
    """It has no size and never ends."""
    with pytest.raises(RequestError, match=r"/dev/zero has more than the limit of 1 KiB; give a file"):
        read_bytes(Path("/dev/zero"), 1024, "give a file")


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    (tmp_path / "a").write_bytes(b"12345")
    require_size(tmp_path / "a", 5, "")
    assert read_bytes(tmp_path / "a", 5, "") == b"12345"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (1536, "1.5 KiB"), (5 * GIB, "5 GiB")]
)
def test_sizes_have_the_largest_unit(count: int, text: str) -> None:
    """Three digits and a binary unit."""
    assert format_bytes(count) == text


def test_a_batch_has_about_a_million_values() -> None:
    """Images that are larger come one by one."""
    assert (images_at_once((3, 32, 32)), images_at_once((3, 4000, 4000))) == (325, 1)
