"""What is taken in from files: how much they may hold, and text, JSON and YAML within that.

A file may come from a stranger, so it is measured before it is read. The limits are far above what is met in practice;
files of tensors are held against what they claim in ``acq.files.tensors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from acq.errors import RequestError, first_line

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SETTINGS_BYTES = 256 * KIB  # all settings written out have 2 kB, bits for each of 1,000 layers 30 more
SETTINGS_VALUES = 20_000  # with aliases written out, which is how a small file becomes a large value
DOCUMENT_BYTES = 64 * MIB  # a run's graph has 1 kB a node, its log 0.2 kB a step
WEIGHTS_BYTES = 16 * GIB  # the largest public classifiers with batch norm have 3, optimizers hold twice that
IMAGES_BYTES = 8 * GIB  # ImageNet's 50,000 validation images of 224 x 224 have 7
PIXELS = 64 * MIB  # of one image file: 8,192 x 8,192
VALUES_AT_ONCE = 1 << 29  # of one node for the images that are run together: 2 GiB, ten times what ResNets have
_INPUT_VALUES = 1_000_000


def in_bytes(count: int) -> str:
    """A number of bytes as text, such as ``1.5 GiB``."""
    units = ((GIB << 10, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    unit, name = next(((unit, name) for unit, name in units if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}"


def require_at_most(most: int, path: Path, instead: str) -> None:
    """Refuse a file of more than ``most`` bytes by what the system says of it; ``instead`` is the way out.

    Raises:
        RequestError: it has more.
        OSError: it is not there.
    """
    found = path.stat().st_size
    if found > most:
        raise RequestError(f"{path} has {in_bytes(found)}, more than the {in_bytes(most)} that are read; {instead}")


def read_bytes(path: Path, most: int, instead: str) -> bytes:
    """The bytes of a file, of which no more than ``most`` are ever in memory; raises as ``require_at_most``."""
    require_at_most(most, path, instead)
    with path.open("rb") as file:
        found = file.read(most + 1)  # a device or a pipe has no size that the system knows
    if len(found) > most:
        raise RequestError(f"{path} has more than the {in_bytes(most)} that are read; {instead}")
    return found


def read_text(path: Path, most: int = DOCUMENT_BYTES, instead: str = "quantize again") -> str:
    """The text of a file in UTF-8; raises as ``read_bytes``, and ``UnicodeDecodeError``."""
    return read_bytes(path, most, instead).decode()


def images_at_once(input_size: Sequence[int]) -> int:
    """How many images of one size are run together: as many as make a million values, so that memory does not grow with
    the image."""
    return max(1, _INPUT_VALUES // math.prod(input_size))


def from_json(written: str) -> Any:
    """The value of a JSON text; ValueError where it is none or nests without end."""
    try:
        return json.loads(written)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def from_yaml(written: str) -> Any:
    """The value of a YAML text of settings.

    Raises:
        ValueError: it is none, nests without end, or has more than ``SETTINGS_VALUES`` values once its aliases are
            written out.
    """
    try:
        node = yaml.compose(written, yaml.SafeLoader)
        if node is not None and _values(node, {}) > SETTINGS_VALUES:
            raise ValueError(f"it has more than {SETTINGS_VALUES:,} values with its aliases written out")
        return yaml.safe_load(written)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except Exception as error:  # a tag that does not fit its value raises anything
        raise ValueError(first_line(error)) from error


def read_settings(path: Path) -> dict[str, Any]:
    """A configuration file as a nested mapping.

    Raises:
        RequestError: it cannot be read, is too large, or is not a mapping.
    """
    try:
        values = from_yaml(read_text(path, SETTINGS_BYTES, "leave out what is no setting"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"the configuration {path} cannot be read: {first_line(error)}; mend or replace it"
        ) from error
    if not isinstance(values, dict):
        raise RequestError(f"the configuration {path} is not a mapping of settings, such as `seed: 1`")
    return values


def assignment(written: str) -> dict[str, Any]:
    """``"student.steps=100"`` as ``{"student": {"steps": 100}}``; RequestError if it is not of that form."""
    key, sign, value = written.partition("=")
    if not sign or not all(key.split(".")):
        raise RequestError(f"setting {written!r} is not of the form key=value, such as student.steps=100")
    try:
        change: Any = from_yaml(value)
    except ValueError as error:
        raise RequestError(f"setting {written!r}: the value cannot be read as YAML") from error
    for part in reversed(key.split(".")):
        change = {part: change}
    return dict(change)


def _values(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values of a node with aliases written out; one that stands within itself has too many."""
    if id(node) not in counted:
        counted[id(node)] = SETTINGS_VALUES + 1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_values(part, counted) for part in parts)
    return counted[id(node)]
