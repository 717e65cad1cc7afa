from __future__ import annotations

import os
from pathlib import Path

import pytest

from acq.files.atomic import remove_leftovers, replacing, write_atomically


@pytest.mark.parametrize(
    ("content", "written"), [("ä\n", b"\xc3\xa4\n"), ("a\r\nb\n", b"a\r\nb\n"), (b"\x00", b"\x00")]
)
def test_content_replaces_the_old_file(tmp_path: Path, content: bytes | str, written: bytes) -> None:
    """Text is UTF-8 with unchanged line ends, bytes are themselves, and no other file remains."""
    path = tmp_path / "a.json"
    path.write_text("old")
    write_atomically(path, content)
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["replace", "write_bytes"])
def test_a_failed_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    """The old content stays and the temporary file is removed, whether writing or renaming fails."""

    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os if function == "replace" else Path, function, fail)
    with pytest.raises(type(error)):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    """The temporary path is in the same folder and has the same suffix."""
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """No folder is created for the file."""
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.json", "")


def test_leftovers_of_killed_processes_can_be_removed(tmp_path: Path) -> None:
    """The file itself and other files stay."""
    folder = tmp_path / "runs [1]"
    folder.mkdir()
    path = folder / "state.pt"
    for name in ("state.pt", ".state.partial-1.pt", ".state.partial-22.pt", ".other.partial-1.pt"):
        (folder / name).touch()
    remove_leftovers(path)
    assert {file.name for file in folder.iterdir()} == {"state.pt", ".other.partial-1.pt"}
