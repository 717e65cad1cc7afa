"""Write the pages that follow from the code: settings, commands and operators.

    python docs/generate.py

The pages are committed. ``tests/test_docs.py`` checks that they are up to date.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from acq.cli import app
from acq.config import Config
from acq.network.operators import ROLES, Role
from acq.presets import ENOUGH, PRESETS
from acq.quantization.formats import WIDE_BITS

DOCS = Path(__file__).parent
WIDTH = 100  # of help texts
_MOST_LABEL = 30  # columns of an option, beyond which its help begins on the next line
_REPLACED = ("aten.contiguous.default", "aten.view.default", "aten._unsafe_view.default")  # by the trace, with others
_NOTE = "<!-- Written by docs/generate.py. Do not edit. -->"


def pages() -> dict[str, str]:
    """The text of each generated page, by file name."""
    return {"settings.md": settings(), "cli.md": commands(), "operators.md": operators()}


def settings() -> str:
    """All settings with type, default and meaning, one table per section; and what each preset changes."""
    parts = [
        f"{_NOTE}\n\n# Settings",
        "A setting is given by `--set KEY=VALUE`, by a YAML file with `--config FILE`, or in Python by "
        "`settings={...}`.\nOptions of the command win over `--set`, and `--set` wins over the file. "
        "`acq settings` prints this tree as YAML.",
        _fenced("sh", "acq settings --preset best --set student.steps=1000"),
        *_sections(Config(), "", "General", Config.model_json_schema()),
        "## Presets\n\nA preset changes these defaults:",
        _table(("Preset", "Setting", "Value"), _preset_rows()),
        f"`fast` and `default` set `calibration.enough` to {ENOUGH} with at least {WIDE_BITS} bits of activations, "
        "or activations in\nfloating point. "
        "With as many bits of weights too, `default` has the steps and images of `fast`.",
    ]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The help of all commands as plain text."""
    root: Any = typer.main.get_command(app)
    parts = [
        f"{_NOTE}\n\n# Commands",
        "Results go to standard output, progress and notes to standard error.",
        _table(
            ("Exit code", "Meaning"),
            [
                ("0", "done"),
                ("1", "the run failed; one line says why"),
                ("2", "the request is wrong; one line names the thing and the way out"),
                ("130", "interrupted; the state is saved"),
            ],
        ),
    ]
    for name, command in sorted(root.commands.items()):
        parts.append(f"## acq {name}\n\n{_fenced('text', _help(name, command))}")
    return "\n\n".join(parts) + "\n"


def operators() -> str:
    """All operators that the planner knows, by role. Each of them has a form in ONNX files, which a test checks."""
    rows = []
    for role, names in groupby(sorted(ROLES, key=lambda name: list(Role).index(ROLES[name])), key=ROLES.__getitem__):
        known = [name for name in names if name.startswith("aten.") and name not in _REPLACED and role != Role.SHAPE]
        if known:
            rows.append((str(role), ", ".join(f"`{name.removeprefix('aten.')}`" for name in known)))
    parts = [
        f"{_NOTE}\n\n# Operators",
        "`torch.export` turns a network into operators of ATen, the tensor library of PyTorch. These operators can be\n"
        "quantized, and are in ONNX files in forms for which engines have integer kernels where there are any.\n"
        "Any other operator stays in floating point, in the student and in the file.",
        _table(("Role", "Operators"), rows),
        "Some functions in pieces are put together first ([Your network](your-model.md#layer-names)): hard sigmoid,\n"
        "hard swish, SiLU, Mish, GELU, layer norm, and products with a constant matrix.",
        "Operators of the role `move` copy, select or reorder values, so they need no quantizer of their own.",
        "[Extending](extending.md#an-operator) shows how to add one.",
    ]
    return "\n\n".join(parts) + "\n"


def _sections(section: BaseModel, above: str, title: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """A heading and a table for a section, and for each of its sections."""
    kind = type(section)
    summary = "" if not above else f"\n\n{str(kind.__doc__).splitlines()[0].replace('``', '`')}"
    facts = schema["properties"] if not above else schema["$defs"][kind.__name__]["properties"]
    rows, inner = [], []
    for name, field in kind.model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner.append((name, value))
        else:
            default = json.dumps(value).strip('"')
            rows.append((f"`{above}{name}`", _type(facts[name]), f"`{default}`", str(field.description)))
    yield f"## {title}{summary}\n\n{_table(('Setting', 'Value', 'Default', 'Meaning'), rows)}"
    for name, value in inner:
        yield from _sections(value, f"{above}{name}.", f"{above}{name}", schema)


def _type(facts: Mapping[str, Any]) -> str:
    """The type of a setting in words, from its JSON schema."""
    if "anyOf" in facts:
        return " or ".join(_type(part) for part in facts["anyOf"])
    if "const" in facts or "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts.get("enum", [facts.get("const")]))
    if facts["type"] == "object":
        return "name: " + _type(facts["additionalProperties"])
    if facts["type"] == "array":
        return "list of " + _type(facts["items"])
    low = facts.get("minimum", facts.get("exclusiveMinimum"))
    high = facts.get("maximum", facts.get("exclusiveMaximum"))
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "`null`"}
    word = words[facts["type"]]
    if facts.get("multipleOf") == 2:
        word = f"even {word}"
    above = "above" if "exclusiveMinimum" in facts else "from"
    if low is not None and high is not None and high < 2**31:
        return f"{word} {above} {low:g} to {high:g}"
    return word if low is None else f"{word} {above} {low:g}"


def _preset_rows() -> Iterator[tuple[str, str, str]]:
    for preset, changes in PRESETS.items():
        for key, value in _flat(changes, ""):
            yield f"`{preset}`", f"`{key}`", f"`{json.dumps(value)}`"


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _help(name: str, command: Any) -> str:
    """What ``acq NAME --help`` says, in plain text of a fixed width."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and "--help" not in param.opts]
    usage = " ".join(["acq", name, *(["[OPTIONS]"] if options else []), *(_metavar(each) for each in arguments)])
    lines = [f"Usage: {usage}", "", *textwrap.wrap(" ".join(str(command.help).split()), WIDTH)]
    if arguments:
        lines += ["", "Arguments:", *_described((_metavar(each), each.help) for each in arguments)]
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        panel = option.rich_help_panel or "Options"
        panels.setdefault(panel, []).append((_option(option), str(option.help)))
    for panel, rows in panels.items():
        lines += ["", f"{panel}:", *_described(rows)]
    if command.epilog:
        title, *examples = filter(None, map(str.strip, command.epilog.splitlines()))
        lines += ["", title, *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _option(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _described(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Labels and their texts in two columns."""
    rows = list(rows)
    column = min(max(len(label) for label, _ in rows), _MOST_LABEL) + 4
    for label, text in rows:
        first, *others = textwrap.wrap(" ".join(text.split()), WIDTH - column) or [""]
        if len(label) > _MOST_LABEL:
            yield f"  {label}"
            label = ""
        yield f"  {label}".ljust(column) + first
        yield from (" " * column + line for line in others)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
