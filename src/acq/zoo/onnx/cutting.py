"""The part of a file that is quantized, up to named values, and the part behind it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from acq.errors import RequestError, nearest
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
