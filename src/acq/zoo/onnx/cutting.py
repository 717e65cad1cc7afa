"""The part of a file that is quantized, up to named values, and the part behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from acq.errors import RequestError, listed, nearest
from acq.zoo.onnx.graph import needed


def exits_of(model: onnx.ModelProto, outputs: Sequence[str]) -> tuple[str, ...]:
    """The values that the network returns.

    Args:
        model: The file.
        outputs: Names of values; indices and names of the file's own outputs cut nothing.

    Raises:
        RequestError: There is no such value.
    """
    own = tuple(value.name for value in model.graph.output)
    if all(name in own or (name.isdecimal() and int(name) < len(own)) for name in outputs):
        return own
    made = [name for node in model.graph.node for name in node.output if name]
    for name in outputs:
        if name not in made:
            raise RequestError(
                f"the file computes no {name[:60]!r}{nearest(name, made)}; give names of values of its graph "
                "as --outputs"
            )
    return tuple(dict.fromkeys(outputs))


def cut(model: onnx.ModelProto, exits: tuple[str, ...]) -> onnx.ModelProto:
    """The model up to some values."""
    if exits == tuple(value.name for value in model.graph.output):
        return model
    nodes = needed(model, exits)
    used = {name for node in nodes for name in node.input}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.output[:], found.graph.initializer[:], found.graph.value_info[:]
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exits)
    return found


def tail_of(model: onnx.ModelProto, entry: str, kinds: Mapping[str, str]) -> onnx.ModelProto | None:
    """The model behind some values, which takes them under their names; None where nothing is behind them.

    Args:
        model: The file.
        entry: The name of its images.
        kinds: The values, and NumPy's name of their type. Outputs of the file among them pass through.

    Raises:
        RequestError: It takes other values of the graph too, or what cannot be kept.
    """
    own, exits = tuple(value.name for value in model.graph.output), tuple(kinds)
    if exits == own:
        return None
    known = {tensor.name for tensor in model.graph.initializer} | {entry, *exits}
    nodes = _behind(model, own, set(exits))
    made = {name for node in nodes for name in node.output}
    free = {name for node in nodes for name in _read_by(node) if name} - made
    computed = _of_the_images(model, entry) & {name for node in needed(model, exits) for name in node.output}
    passed = set(own) & set(exits)
    missing = sorted(((free | (set(own) - made)) - known) | (computed & made - set(exits)))
    if missing:
        raise RequestError(
            f"what is behind --outputs also takes {listed(map(repr, missing))}, which comes before it; "
            "name that as --outputs too, or cut elsewhere"
        )
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.initializer[:], found.graph.input[:], found.graph.value_info[:]
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in free)
    images = next(value for value in model.graph.input if value.name == entry)
    types = {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in kinds.items()}
    types[entry] = images.type.tensor_type.elem_type
    taken = [name for name in (entry, *exits) if name in free | passed]
    found.graph.input.extend(helper.make_tensor_value_info(name, types[name], None) for name in taken)
    return found


def _of_the_images(model: onnx.ModelProto, entry: str) -> set[str]:
    """The values that follow from pixels, and not from the size of the images alone."""
    found = {entry}
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _behind(model: onnx.ModelProto, own: tuple[str, ...], exits: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the file's own outputs need, without those that compute ``exits``."""
    wanted, found = set(own) - exits, []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted.update(set(_read_by(node)) - exits)
    return found[::-1]


def _read_by(node: onnx.NodeProto) -> list[str]:
    """What a node and the graphs inside it read; control flow behind the cut stays as it is."""
    names, inner = list(node.input), [part.g for part in node.attribute if part.type == onnx.AttributeProto.GRAPH]
    for graph in inner:
        made = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        made |= {name for each in graph.node for name in each.output}
        names += [name for each in graph.node for name in _read_by(each) if name not in made]
    return names
