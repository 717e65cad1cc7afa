"""Gives an exported model the form of the ONNX file from which its network came: names, layout, type and batch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto, helper

from acq.core.file_form import FileForm
from acq.files.class_names import NAMES
from acq.files.screening import TAIL_FACT

TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32, "uint32": TensorProto.UINT32, "int64": TensorProto.INT64, "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
}  # fmt: skip
_INTEGERS = (TensorProto.INT64, TensorProto.BOOL)  # that a student returns
LAYOUT = "layout"  # key of the metadata
_OWN_KEYS = {
    "acq", "model", "preset", "seed", "bits", "first_last_bits", "add_bits", "placement", "images", "input_size",
    "mean", "std", "resize", "interpolation", "outputs", "counted", NAMES, LAYOUT, TAIL_FACT,
}  # fmt: skip
_TO_FRONT = [0, 3, 1, 2]


def in_form(model: onnx.ModelProto, form: FileForm) -> None:
    """Let a model take and return what the file did; it changes in place.

    Args:
        model: Takes normalised images [N, C, H, W] in 32 bits, and returns the outputs of ``form`` in their order.
        form: Of the file.
    """
    graph = model.graph
    names = list(form.outputs)
    wanted = {graph.input[0].name: form.images}
    wanted |= {value.name: name for value, name in zip(graph.output, names, strict=True)}
    rename(graph, wanted, reserved=[form.images, *names])
    nodes = _entrance(graph.input[0], form)
    ends = [_exit(value, form) for value in graph.output]
    inner = {form.images: nodes[-1].output[0]} if nodes else {}
    inner |= {end.output[0]: end.input[0] for end in ends if end is not None}
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    kept = [*nodes, *graph.node, *(end for end in ends if end is not None)]
    del graph.node[:]
    graph.node.extend(kept)
    known = {entry.key: entry.value for entry in model.metadata_props}
    own = {**known, "outputs": json.dumps(names), LAYOUT: form.layout}
    said = {key: text for key, text in form.metadata.items() if key not in _OWN_KEYS}
    helper.set_model_props(model, said | own)


def rename(graph: onnx.GraphProto, names: Mapping[str, str], reserved: Collection[str] = ()) -> None:
    """Rename values; those that happen to have a reserved name get underscores.

    Args:
        graph: It changes in place.
        names: New names by old ones.
        reserved: Names that no other value may have.
    """
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(reserved)
    found = dict(names)
    for name in sorted(taken.intersection(reserved) - {*names, ""}):
        other = name
        while other in taken:
            other += "_"
        taken.add(other)
        found[name] = other
    for node in graph.node:
        node.input[:] = [found.get(name, name) for name in node.input]
        node.output[:] = [found.get(name, name) for name in node.output]
    for part in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.name = found.get(part.name, part.name)


def _entrance(value: onnx.ValueInfoProto, form: FileForm) -> list[onnx.NodeProto]:
    """The nodes that turn what the file takes into what the student takes."""
    sides = value.type.tensor_type.shape.dim
    size: list[int | str] = [form.batch or "N", *(side.dim_value for side in sides[1:])]
    if form.layout == "NHWC":
        size = [size[0], *size[2:], size[1]]
    value.CopyFrom(helper.make_tensor_value_info(form.images, TYPES[form.kind], size))
    nodes, last = [], form.images
    if form.kind != "float32":
        nodes.append(helper.make_node("Cast", [last], [f"{form.images}/floats"], to=TensorProto.FLOAT))
        last = nodes[-1].output[0]
    if form.layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [last], [f"{form.images}/turned"], perm=_TO_FRONT))
    return nodes


def _exit(value: onnx.ValueInfoProto, form: FileForm) -> onnx.NodeProto | None:
    """The node that gives an output its type, if it needs one; its number of images becomes that of the file."""
    kind, sides = form.outputs[value.name], value.type.tensor_type.shape.dim
    if form.batch is not None and sides and sides[0].dim_param == "N":
        sides[0].dim_value = form.batch
    made = value.type.tensor_type.elem_type
    if made == TYPES[kind] or (kind == "float32" and made in _INTEGERS):  # so earlier versions noted integers
        return None
    value.type.tensor_type.elem_type = TYPES[kind]
    return helper.make_node("Cast", [f"{value.name}/student"], [value.name], to=TYPES[kind])
