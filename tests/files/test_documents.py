from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acq.config import Config
from acq.errors import RequestError
from acq.files.documents import assignment, from_json, from_yaml, read_settings, read_text
from acq.files.limits import SETTINGS_BYTES

# nine lines of nine aliases each, of which the last has 9 ** 9 values
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def test_text_is_utf_8(tmp_path: Path) -> None:
    """Other content is an error."""
    (tmp_path / "a").write_bytes("ä".encode())
    assert read_text(tmp_path / "a") == "ä"
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a")


def test_a_text_over_the_limit_is_refused(tmp_path: Path) -> None:
    """The way out is the caller's."""
    (tmp_path / "a").write_text("12345")
    with pytest.raises(RequestError, match="limit of 4 bytes; give less"):
        read_text(tmp_path / "a", 4, "give less")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, ""])
def test_bad_json_is_a_value_error(text: str) -> None:
    """Also where it is nested without end or a number is too long."""
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
def test_bad_yaml_is_a_value_error(text: str) -> None:
    """Tags run no code, and aliases are counted before they are expanded."""
    with pytest.raises(ValueError):
        from_yaml(text)


def test_few_aliases_are_allowed() -> None:
    """PyYAML itself writes them for a list that stands in two places."""
    assert from_yaml("mean: &a [0.5, 0.5]\nstd: *a") == {"mean": [0.5, 0.5], "std": [0.5, 0.5]}


def test_all_settings_are_far_below_the_limit(tmp_path: Path) -> None:
    """With bits for a thousand layers they take less than a fifth of it."""
    config = Config.create("best", {"layers": {f"conv2d_{i}": 4 for i in range(1000)}})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Config.create("default", read_settings(tmp_path / "c.yaml")) == config
    assert (tmp_path / "c.yaml").stat().st_size * 5 < SETTINGS_BYTES


@pytest.mark.parametrize(
    "content", ["- 1\n- 2", "seed", "3", "a: [", "\x00", "a: b: c", b"\xff\xfe\x00", LAUGHS, "#" * SETTINGS_BYTES + "#"]
)
def test_a_file_that_is_no_configuration_is_refused(content: str | bytes, tmp_path: Path) -> None:
    """One line names it."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=r"c\.yaml") as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    """So is a folder in its place."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RequestError, match="cannot read the configuration"):
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
        ("layers={a: 3}", {"layers": {"a": 3}}),
        ("layers.conv1=8", {"layers": {"conv1": 8}}),
        ("layers.layer3.2.conv2=6", {"layers": {"layer3.2.conv2": 6}}),
        ("layers.layer3.*=float", {"layers": {"layer3.*": "float"}}),
    ],
)
def test_an_assignment_is_a_nested_change(text: str, change: dict[str, Any]) -> None:
    """Each dot goes one level down, except in layer names; values are YAML."""
    assert assignment(text) == change


@pytest.mark.parametrize("text", ["seed", "=1", ".a=1", "a..b=1", "a.=1", "layers.=1", "seed=[", "seed=2001-99-99", ""])
def test_other_forms_are_refused(text: str) -> None:
    """One line repeats the text."""
    with pytest.raises(RequestError, match="setting") as caught:
        assignment(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
