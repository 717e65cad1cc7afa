from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from acq.config import Config
from acq.errors import RequestError
from acq.files.limits import (
    DOCUMENT_BYTES,
    GIB,
    SETTINGS_BYTES,
    assignment,
    from_json,
    from_yaml,
    images_at_once,
    in_bytes,
    read_bytes,
    read_settings,
    read_text,
)

# nine lines of nine aliases each, of which the last has 9 ** 9 values
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def sparse(path: Path, size: int) -> Path:
    """A file that says it has ``size`` bytes and takes up none."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("size", [DOCUMENT_BYTES + 1, 4096 * GIB])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, size: int) -> None:
    """By what the system says of its size, in a line with the way out."""
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"a\.json has .*iB, more than the 64 MiB that are read; quantize again"):
        read_text(sparse(tmp_path / "a.json", size))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_file_without_a_size_is_read_no_further_than_the_limit() -> None:
    """Such as a device, which never ends."""
    with pytest.raises(RequestError, match=r"/dev/zero has more than the 1 KiB"):
        read_bytes(Path("/dev/zero"), 1024, "give a file")


def test_what_is_as_large_as_it_may_be_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5, "") == b"12345"


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (1536, "1.5 KiB"), (5 * GIB, "5 GiB")]
)
def test_sizes_are_told_in_the_largest_unit(count: int, words: str) -> None:
    assert in_bytes(count) == words


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, ""])
def test_what_is_no_json_is_one_kind_of_error(text: str) -> None:
    """However it is none."""
    with pytest.raises(ValueError):
        from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: [",
        "2001-99-99",
        "9" * 5000,
        "!!bool x",
        "!!int x",
        "!!timestamp x",
        "!!python/object/apply:os.system [ls]",
        "a: &a [*a]",
        LAUGHS,
    ],
)
def test_what_is_no_yaml_of_settings_is_one_kind_of_error(text: str) -> None:
    """However it is none; aliases that multiply are counted before they are followed."""
    with pytest.raises(ValueError):
        from_yaml(text)


def test_aliases_that_do_not_multiply_may_be_used() -> None:
    """As PyYAML itself writes a list that stands in two places."""
    assert from_yaml("mean: &a [0.5, 0.5]\nstd: *a") == {"mean": [0.5, 0.5], "std": [0.5, 0.5]}


def test_every_setting_is_far_within_the_limit(tmp_path: Path) -> None:
    """A thousand layers of their own bits too."""
    config = Config.create("best", {"layers": {f"conv2d_{i}": 4 for i in range(1000)}})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Config.create("default", read_settings(tmp_path / "c.yaml")) == config
    assert (tmp_path / "c.yaml").stat().st_size * 5 < SETTINGS_BYTES


@pytest.mark.parametrize(
    "content", ["- 1\n- 2", "seed", "3", "a: [", "\x00", "a: b: c", b"\xff\xfe\x00", LAUGHS, "#" * SETTINGS_BYTES + "#"]
)
def test_a_file_that_is_no_configuration_is_told(content: str | bytes, tmp_path: Path) -> None:
    """In a line that names it."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=r"c\.yaml") as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)


def test_a_missing_configuration_is_told(tmp_path: Path) -> None:
    """As is a folder in its place."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RequestError, match="cannot be read"):
            read_settings(path)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("seed=1", {"seed": 1}),
        ("student.steps=100", {"student": {"steps": 100}}),
        ("generator.losses.centre=0.5", {"generator": {"losses": {"centre": 0.5}}}),
        ("bits=w4a4=", {"bits": "w4a4="}),
        ("ends=same", {"ends": "same"}),
        ("generator={steps: 3}", {"generator": {"steps": 3}}),
    ],
)
def test_an_assignment_is_a_nested_change(text: str, change: dict[str, Any]) -> None:
    """Dots go down a level, and values are read as YAML."""
    assert assignment(text) == change


@pytest.mark.parametrize("text", ["seed", "=1", ".a=1", "a..b=1", "a.=1", "seed=[", "seed=2001-99-99", ""])
def test_what_is_no_assignment_is_told(text: str) -> None:
    """In a line that repeats it."""
    with pytest.raises(RequestError, match="setting") as caught:
        assignment(text)
    assert "\n" not in str(caught.value)


def test_images_are_run_together_until_they_make_a_million_values() -> None:
    """One at least."""
    assert (images_at_once((3, 32, 32)), images_at_once((3, 4000, 4000))) == (325, 1)
