"""Where in the network's own code a node or an error comes from."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# frames of torch, of this package and of Python itself are not the network's own
_OTHERS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_PYTHON, _PACKAGES = (f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib"))


def written_at(node: fx.Node) -> str:
    """The line of the network's code that made a node, such as `` (net.py, line 12)``; empty if torch does not say."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return place([(file, int(line)) for file, line in frames])


def place(frames: list[tuple[str, int]]) -> str:
    """The innermost frame of the network's own code, for a message.

    Args:
        frames: Files and lines, the innermost last.

    Returns:
        Text such as `` (net.py, line 12)``; empty if every frame is torch's or this package's.
    """
    own = [frame for frame in frames if _is_own(frame[0])]
    if not own:
        return ""
    file, line = own[-1]
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f" ({shown}, line {line})"


def _is_own(file: str) -> bool:
    if file.startswith(("<", *_OTHERS)):
        return False
    return not file.startswith(_PYTHON) or file.startswith(_PACKAGES)
