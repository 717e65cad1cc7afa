"""The part of a file that is quantized, up to named values, and the part behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from acq.errors import RequestError, listed, nearest, short
from acq.files.screening import graphs_in
from acq.zoo.onnx.graph import needed, of_the_images, read_by


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
                f"the file computes no {short(name)}{nearest(name, made)}; give names of values of its graph "
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
    free = {name for node in nodes for name in read_by(node) if name} - made
    of_images = of_the_images(model, entry)
    computed = of_images & {name for node in needed(model, exits) for name in node.output}
    passed = set(own) & set(exits)
    missing = sorted(((free | (set(own) - made)) - known) | (computed & made - set(exits)))
    if missing:
        also = _also(nodes, of_images - {entry}, exits) or missing
        raise RequestError(
            f"what is behind --outputs also takes {listed(map(repr, also))}; "
            "name what it takes as --outputs too, or cut elsewhere"
        )
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.initializer[:], found.graph.input[:], found.graph.value_info[:]
    del found.opset_import[:]
    found.graph.node.extend(nodes)
    used = {node.domain for graph in graphs_in(found.graph) for node in graph.node} | {"", "ai.onnx"}
    found.opset_import.extend(version for version in model.opset_import if version.domain in used)
    found.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in free)
    images = next(value for value in model.graph.input if value.name == entry)
    types = {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in kinds.items()}
    types[entry] = images.type.tensor_type.elem_type
    taken = [name for name in (entry, *exits) if name in free | passed]
    found.graph.input.extend(helper.make_tensor_value_info(name, types[name], None) for name in taken)
    return found


def _also(nodes: Sequence[onnx.NodeProto], of_images: set[str], exits: tuple[str, ...]) -> list[str]:
    """Values beside ``exits`` that the nodes behind them read and that images decide, such as another head's."""
    behind, read = set(exits), set[str]()
    for node in nodes:
        if not behind.isdisjoint(read_by(node)):
            behind.update(node.output)
            read.update(read_by(node))
    return sorted((read & of_images) - behind)


def _behind(model: onnx.ModelProto, own: tuple[str, ...], exits: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the file's own outputs need, without those that compute ``exits``."""
    wanted, found = set(own) - exits, []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted.update(set(read_by(node)) - exits)
    return found[::-1]
