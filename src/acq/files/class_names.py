"""Names of classes: one per line of a text file, in class order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acq.core.outputs import Output
from acq.errors import RequestError, listed, nearest, short
from acq.files.documents import read_text
from acq.files.limits import SETTINGS_BYTES

NAMES = "class_names"  # the key of a student's facts and of a file's metadata


def read_class_names(file: Path) -> tuple[str, ...]:
    """The names in a text file, one per line; empty lines at the end do not count.

    Raises:
        RequestError: The file cannot be read, or a line is empty or there twice.
    """
    try:
        text = read_text(file, SETTINGS_BYTES, "give one name per line")
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); give a text file as --classes") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text; give one name per line as --classes") from error
    return checked_names([line.strip() for line in text.rstrip().splitlines()], str(file))


def checked_names(names: Any, where: str) -> tuple[str, ...]:
    """Names that are texts, none of them empty or there twice.

    Args:
        names: What may be a list of names.
        where: They come from, for a message.

    Raises:
        RequestError: They are no such names.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise RequestError(f"{where} has a class without a name; give one name per class")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"{where} has several classes of the name {listed(map(short, twice))}; give each its own")
    return tuple(names)


def require_fitting(names: Sequence[str], output: Output) -> None:
    """Refuse names that do not fit what a network returns.

    Args:
        names: Of the classes or labels; none fit every network.
        output: How the network decides.

    Raises:
        RequestError: There are more or fewer than classes, or images as a whole have no class.
    """
    scores = output.whole
    if names and (scores is None or scores.size != len(names)):
        raise RequestError(f"there are {len(names)} names of classes but the network returns {output}; leave them out")


def label_of(name: str, names: Sequence[str], where: Path) -> int:
    """The label of a folder by the names of the classes.

    Args:
        name: Of the folder.
        names: Of the classes, in order.
        where: The folder is, for a message.

    Raises:
        RequestError: No class has that name.
    """
    if name not in names:
        raise RequestError(f"{where / name} is named after no class{nearest(name, names)}; rename it, or leave it out")
    return names.index(name)
