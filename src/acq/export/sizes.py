"""Folds the arithmetic of sizes in an ONNX model, so that every shape is known but for the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import onnx
from onnx import helper, numpy_helper

from acq.files.onnx_session import session_of

Sizes = Mapping[str, np.ndarray]
_SHAPES = ("Shape", "Size")


def fold_sizes(model: onnx.ModelProto, small: Sizes, large: Sizes) -> None:
    """Replace values that depend only on shapes by constants, in place.

    A list of sizes of which one depends on the number of images becomes -1 there for Reshape. For other operators it
    is written as a factor times the number of images, which is asked of the images alone. The number of images of
    another value may be known too late: an operator may compute what that value depends on.

    Args:
        model: A model for any number of images; its first input has them on the first axis.
        small: Its inputs for two images.
        large: The same inputs for three images.
    """
    shapes, sizes = _sizes(model)
    if not sizes:
        return
    two, three = (_computed(model, sizes, inputs) for inputs in (small, large))
    folded = {name for name in sizes if _has_form(two[name], three[name], name in shapes)}
    images = model.graph.input[0].name
    for count, name in enumerate(_used(model, sizes, folded)):
        _replace(model.graph, name, two[name], three[name], images, f"size_{count}", name in folded)


def _sizes(model: onnx.ModelProto) -> tuple[set[str], list[str]]:
    """The shapes of values, and all values that depend only on shapes and constants, in order."""
    constants = {value.name for value in model.graph.initializer}
    constants.update(node.output[0] for node in model.graph.node if node.op_type == "Constant")
    shapes: set[str] = set()
    sizes: dict[str, None] = {}
    for node in model.graph.node:
        inputs = {name for name in node.input if name}
        if node.op_type in _SHAPES:
            shapes.update(node.output)
        if node.op_type in _SHAPES or (not inputs.isdisjoint(sizes) and inputs <= constants | sizes.keys()):
            sizes.update(dict.fromkeys(name for name in node.output if name))
    return shapes, list(sizes)


def _used(model: onnx.ModelProto, sizes: Sequence[str], folded: Set[str]) -> list[str]:
    """The sizes that are outputs of the model, or are read by an operator that stays: its output is not folded."""
    known, used = set(sizes), dict[str, None]()
    for node in model.graph.node:
        if not folded >= set(node.output) - {""}:
            used.update(dict.fromkeys(name for name in node.input if name in known))
    used.update(dict.fromkeys(value.name for value in model.graph.output if value.name in known))
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


def _has_form(two: np.ndarray, three: np.ndarray, shape: bool) -> bool:
    """Whether a value is a constant, or a multiple of the number of images; shapes may have a rest beside it."""
    if two.shape != three.shape:
        return False
    if np.array_equal(two, three):
        return True
    if two.ndim > 1 or two.dtype != np.int64:
        return False
    return shape or not (3 * two - 2 * three)[three != two].any()


def _replace(
    graph: onnx.GraphProto, name: str, two: np.ndarray, three: np.ndarray, images: str, new: str, has_form: bool
) -> None:
    """Let the readers of a value read a constant, or the shortest form that depends on the number of images."""
    if two.shape != three.shape:
        return
    if np.array_equal(two, three):
        graph.initializer.append(numpy_helper.from_array(two, new))
        _redirect(graph, name, new)
        return
    if two.ndim == 1 and two.dtype == np.int64 and np.count_nonzero(three - two) == 1:
        graph.initializer.append(numpy_helper.from_array(np.where(three != two, -1, two), f"{new}_reshape"))
        _redirect(graph, name, f"{new}_reshape", ("Reshape",))
    if has_form:
        _write_multiples(graph, three - two, 3 * two - 2 * three, images, new)
        _redirect(graph, name, new)


def _write_multiples(graph: onnx.GraphProto, factor: np.ndarray, rest: np.ndarray, images: str, new: str) -> None:
    """Add nodes for ``factor`` times the number of images, and ``rest``."""
    for part, value in {"factor": factor, "rest": rest, "scalar": np.array([], np.int64)}.items():
        graph.initializer.append(numpy_helper.from_array(value, f"{new}_{part}"))
    sum_ = new if factor.ndim else f"{new}_list"
    nodes = [
        helper.make_node("Shape", [images], [f"{new}_images"], start=0, end=1),
        helper.make_node("Mul", [f"{new}_images", f"{new}_factor"], [f"{new}_multiple"]),
        helper.make_node("Add", [f"{new}_multiple", f"{new}_rest"], [sum_]),
    ]
    if not factor.ndim:
        nodes.append(helper.make_node("Reshape", [sum_, f"{new}_scalar"], [new]))
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
