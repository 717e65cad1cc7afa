"""Names of classes: one per line of a text file, in class order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acq.core.outputs import Output
from acq.errors import RequestError, nearest
from acq.files.documents import read_text
from acq.files.limits import SETTINGS_BYTES

NAMES = "class_names"  # the key of a student's facts and of a file's metadata


def read_class_names(file: Path) -> tuple[str, ...]:
    """The names in a text file, one per line; empty lines at the end do not count.

    Raises:
        RequestError: The file cannot be read, is empty, or has an empty line between others.
    """
    try:
        text = read_text(file, SETTINGS_BYTES, "give one name per line")
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); give a text file as --classes") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text; give one name per line as --classes") from error
    lines = text.removeprefix("\ufeff").rstrip().splitlines() or [""]
    return checked_names([line.strip() for line in lines], str(file))


def checked_names(names: Any, where: str) -> tuple[str, ...]:
    """Names that are texts, none of them empty. Two classes may have one name, as in lists for ImageNet.

    Args:
        names: What may be a list of names.
        where: Source of the names, for a message.

    Raises:
        RequestError: They are no such names.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise RequestError(f"{where} has a class without a name; give one name per class")
    return tuple(names)


def fitting(names: Sequence[str], known: Sequence[str], output: Output) -> tuple[str, ...]:
    """The names of a network's classes or labels.

    Args:
        names: Given by the user; empty where none are given.
        known: What is known otherwise; it counts where it fits.
        output: How the network decides.

    Raises:
        RequestError: The given names are more or fewer than the classes, or images as a whole have no class.
    """
    count = 0 if output.whole is None else output.whole.size
    given = checked_names(names, "the list of names")
    if given and len(given) != count:
        raise RequestError(f"there are {len(given)} names of classes but the network returns {output}; leave them out")
    return given or (tuple(known) if len(known) == count else ())


def label_of(name: str, names: Sequence[str], where: Path) -> int:
    """The label of a folder by the names of the classes.

    Args:
        name: Name of the folder.
        names: Names of the classes, in order.
        where: The folder above, for a message.

    Raises:
        RequestError: No class has that name, or several have it.
    """
    if name not in names:
        raise RequestError(f"{where / name} is named after no class{nearest(name, names)}; rename it, or leave it out")
    if names.count(name) > 1:
        raise RequestError(f"{where / name} is named after several classes; name folders by class index")
    return names.index(name)
