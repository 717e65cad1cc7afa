"""Text, JSON and YAML from files and the command line, within the limits of ``acq.files.limits``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from acq.errors import RequestError, first_line
from acq.files.limits import DOCUMENT_BYTES, SETTINGS_BYTES, SETTINGS_VALUES, read_bytes

_LAYERS = "layers"  # the setting whose keys are layer names, which contain dots


def read_text(path: Path, most: int = DOCUMENT_BYTES, instead: str = "quantize again") -> str:
    """Return a UTF-8 file's text.

    Args:
        path: The file.
        most: The limit in bytes.
        instead: The way out, for the message.

    Raises:
        RequestError: The file is larger.
        OSError: The file cannot be read.
        UnicodeDecodeError: The content is not UTF-8.
    """
    return read_bytes(path, most, instead).decode()


def from_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: The text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_yaml(text: str) -> Any:
    """Return the value of a YAML text of settings.

    Raises:
        ValueError: The text is not YAML, is nested too deeply, or has more than ``SETTINGS_VALUES`` values once its
            aliases are expanded.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _count(node, {}) > SETTINGS_VALUES:
            raise ValueError(f"it has more than {SETTINGS_VALUES:,} values once its aliases are expanded")
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # a tag that does not fit its value raises anything
        raise ValueError(first_line(error)) from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return a configuration file as a nested mapping.

    Raises:
        RequestError: The file cannot be read, is too large, or is not a mapping.
    """
    try:
        values = from_yaml(read_text(path, SETTINGS_BYTES, "keep only settings in it"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read the configuration {path}: {first_line(error)}; correct it") from error
    if not isinstance(values, dict):
        raise RequestError(f"the configuration {path} is not a mapping of settings; write it like `seed: 1`")
    return values


def assignment(text: str) -> dict[str, Any]:
    """Return ``KEY=VALUE`` as a nested change of settings.

    Each dot of the key goes one level down. Behind ``layers.`` the rest of the key is one layer name or pattern.

    Args:
        text: Such as ``student.steps=100`` or ``layers.layer3.*=6``; the value is YAML.

    Returns:
        Such as ``{"student": {"steps": 100}}`` or ``{"layers": {"layer3.*": 6}}``.

    Raises:
        RequestError: The text does not have this form.
    """
    key, sign, value = text.partition("=")
    names = key.split(".", 1 if key.startswith(f"{_LAYERS}.") else -1)
    if not sign or not all(names):
        raise RequestError(f"setting {text!r} is incomplete; give key=value, such as student.steps=100")
    try:
        change: Any = from_yaml(value)
    except ValueError as error:
        raise RequestError(f"setting {text!r} has a value that is not YAML; put quotes around text") from error
    for name in reversed(names):
        change = {name: change}
    return dict(change)


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count a node's values with aliases expanded; a node that contains itself exceeds every limit."""
    if id(node) not in counts:
        counts[id(node)] = SETTINGS_VALUES + 1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(node)]
