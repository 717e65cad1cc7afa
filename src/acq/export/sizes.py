"""Folds the arithmetic of sizes in an ONNX model, so that every shape is known but for the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from acq.files.onnx_session import session_of

Sizes = Mapping[str, np.ndarray]
_SHAPES = ("Shape", "Size")


def fold_sizes(model: onnx.ModelProto, small: Sizes, large: Sizes) -> None:
    """Replace values that depend only on shapes by constants, in place.

    A list of sizes of which one depends on the number of images becomes -1 there for Reshape. For other operators it
    is written as a factor times the number of images.

    Args:
        model: A model for any number of images; its first input has them on the first axis.
        small: Its inputs for two images.
        large: The same inputs for three images.
    """
    names = _used_sizes(model)
    if not names:
        return
    two, three = (_computed(model, names, inputs) for inputs in (small, large))
    images = model.graph.input[0].name
    for count, name in enumerate(names):
        _replace(model.graph, name, two[name], three[name], images, f"size_{count}")


def _used_sizes(model: onnx.ModelProto) -> list[str]:
    """The values that depend only on shapes and constants and are read by an operator on tensors."""
    constants = {value.name for value in model.graph.initializer}
    constants.update(node.output[0] for node in model.graph.node if node.op_type == "Constant")
    sizes: set[str] = set()
    used: dict[str, None] = {}
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type in _SHAPES or (not sizes.isdisjoint(inputs) and sizes.union(constants).issuperset(inputs)):
            sizes.update(node.output)
        else:
            used.update(dict.fromkeys(name for name in inputs if name in sizes))
    used.update(dict.fromkeys(value.name for value in model.graph.output if value.name in sizes))
    return list(used)


def _computed(model: onnx.ModelProto, names: Sequence[str], inputs: Sizes) -> dict[str, np.ndarray]:
    """The values of that name for some inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = session_of(copy.SerializeToString())
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(list(names), {name: value for name, value in inputs.items() if name in wanted})
    return dict(zip(names, found, strict=True))


def _replace(graph: onnx.GraphProto, name: str, two: np.ndarray, three: np.ndarray, images: str, new: str) -> None:
    """Let the readers of a value read a constant, or the shortest form that depends on the number of images."""
    if two.shape == three.shape and np.array_equal(two, three):
        graph.initializer.append(numpy_helper.from_array(two, new))
        _redirect(graph, name, new)
        return
    if two.ndim != 1 or two.shape != three.shape or two.dtype != np.int64:
        return
    factor = three - two
    if np.count_nonzero(factor) == 1:
        graph.initializer.append(numpy_helper.from_array(np.where(factor, -1, two), f"{new}_reshape"))
        _redirect(graph, name, f"{new}_reshape", ("Reshape",))
    if not (2 * factor - two)[factor != 0].any():  # no rest beside the multiple of the number of images
        _write_multiples(graph, factor, two, images, new)
        _redirect(graph, name, new)


def _write_multiples(graph: onnx.GraphProto, factor: np.ndarray, sizes: np.ndarray, images: str, new: str) -> None:
    """Add nodes for ``factor`` times the number of images, and ``sizes`` where the factor is 0."""
    constants = {
        "factor": np.where(factor, factor, 0),
        "rest": np.where(factor, 0, sizes),
    }
    for part, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.int64), f"{new}_{part}"))
    nodes = [
        helper.make_node("Shape", [images], [f"{new}_images"], start=0, end=1),
        helper.make_node("Mul", [f"{new}_images", f"{new}_factor"], [f"{new}_multiple"]),
        helper.make_node("Add", [f"{new}_multiple", f"{new}_rest"], [new]),
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def _redirect(graph: onnx.GraphProto, name: str, new: str, kinds: Sequence[str] = ()) -> None:
    """Let operators of these kinds (all where there are none) read ``new`` in place of ``name``."""
    for node in graph.node:
        if new in node.output or (kinds and node.op_type not in kinds):
            continue
        for place, given in enumerate(node.input):
            if given == name:
                node.input[place] = new
