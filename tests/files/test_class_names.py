from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acq.core.outputs import Output
from acq.errors import RequestError
from acq.files.class_names import checked_names, fitting, label_of, read_class_names

NAMES = ("cat", "dog", "wild boar")


@pytest.mark.parametrize(
    "text",
    ["cat\ndog\nwild boar", "\ufeffcat\ndog\nwild boar", "cat\ndog\nwild boar\n\n", "cat \r\ndog\r\n  wild boar\r\n"],
)
def test_a_line_is_a_name(text: str, tmp_path: Path) -> None:
    """Blanks around it and empty lines at the end do not count."""
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cat\n\ndog\n", "has a class without a name"),
        (b"", "has a class without a name"),
        (b"\xff\xfe\n", "is not UTF-8 text; give one name per line"),
        (b"cat\n" * 100_000, "more than the limit"),
    ],
)
def test_other_files_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    """In one line with the file's name."""
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(RequestError, match=rf"names\.txt .*{words}|names\.txt {words}") as caught:
        read_class_names(tmp_path / "names.txt")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """With the option."""
    with pytest.raises(RequestError, match=r"cannot be read \(No such file.*--classes"):
        read_class_names(tmp_path / "none.txt")


@pytest.mark.parametrize("names", ["cat", 3, ["cat", 3], [""], {"cat": 1}])
def test_what_a_file_says_is_checked(names: Any) -> None:
    """A damaged run folder or a stranger's file may say anything."""
    with pytest.raises(RequestError, match="it has a class without a name"):
        checked_names(names, "it")


@pytest.mark.parametrize(("kind", "shape"), [("class", (4,)), ("multilabel", (2,)), ("map", (3, 4, 4))])
def test_there_are_as_many_names_as_classes(kind: Any, shape: tuple[int, ...]) -> None:
    """Given names are refused where they do not fit; names that were only known do not count then."""
    assert fitting(NAMES, ("a", "b", "c"), Output.of("class", 3)) == NAMES
    assert fitting((), NAMES, Output.of("multilabel", 3)) == NAMES
    assert fitting((), (), Output.of(kind, *shape)) == fitting((), NAMES, Output.of(kind, *shape)) == ()
    with pytest.raises(RequestError, match="there are 3 names of classes but the network returns"):
        fitting(NAMES, (), Output.of(kind, *shape))
    with pytest.raises(RequestError, match="has a class without a name"):
        fitting("abc", (), Output.of("class", 3))


def test_a_folder_is_found_by_the_name_of_its_class(tmp_path: Path) -> None:
    """Otherwise the message names one that is close."""
    assert label_of("dog", NAMES, tmp_path) == 1
    with pytest.raises(RequestError, match=r"wild boars is named after no class \(did you mean 'wild boar'\?\)"):
        label_of("wild boars", NAMES, tmp_path)


def test_two_classes_may_have_one_name(tmp_path: Path) -> None:
    """As in lists for ImageNet; then no folder can be named after them."""
    names = ("crane", "heron", "crane")
    assert fitting(names, (), Output.of("class", 3)) == names
    with pytest.raises(RequestError, match="crane is named after several classes; name folders by class index"):
        label_of("crane", names, tmp_path)
