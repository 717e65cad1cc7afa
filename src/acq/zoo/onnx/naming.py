"""Paths of modules for the nodes of a graph, so that layers have the names that the file has for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from acq.zoo.onnx.registry import OPERATORS, Node

_WEIGHT = ".weight"
_LONGEST = 80  # characters of a path


def path_of(node: Node) -> str:
    """The path that a node would have as a module: of its weight, of its own name, or of its operator."""
    weight = node.inputs[1].removesuffix(".transposed") if len(node.inputs) > 1 else ""
    if weight.endswith(_WEIGHT):
        return _clean(weight.removesuffix(_WEIGHT))
    name = node.name or (node.outputs[0] if node.outputs else "")
    has_weights = bool(OPERATORS[node.kind].parameters)
    return _clean(".".join(_scopes(name.split("/"), node.kind if has_weights else "")))


def add_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path, or at the path with a number behind it where the path is taken."""
    parent, parts = root, path.split(".")
    for part in parts[:-1]:
        parent = _child(parent, part)
    name, count = parts[-1], 1
    while hasattr(parent, name):
        count += 1
        name = f"{parts[-1]}_{count}"
    parent.add_module(name, module)


def _child(parent: nn.Module, name: str) -> nn.Module:
    """The module of that name within another; a new one where there is none."""
    while hasattr(parent, name) and name not in parent._modules:
        name += "_"
    if name not in parent._modules:
        parent.add_module(name, nn.Module())
    return parent.get_submodule(name)


def _scopes(parts: Sequence[str], kind: str) -> list[str]:
    """Parts of a name with slashes, without repetitions such as ``layer1/layer1.0`` and without ``kind`` at the end."""
    found = [part for part in parts if part]
    kept = [part for part, after in zip(found, [*found[1:], ""], strict=True) if not after.startswith(f"{part}.")]
    return kept[:-1] if len(kept) > 1 and kept[-1] == kind else kept


def _clean(path: str) -> str:
    parts = [re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in path[-_LONGEST:].split(".")]
    return ".".join(filter(None, parts)) or "node"
