"""Writes operators that have no form of their own in a file: ``torch.onnx`` translates them to floating point.

All such operators of a student are translated in one call. Their inputs from the rest of the network become inputs of
one graph, and the nodes of the result join the file.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import onnx
import torch
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from acq.core.interpreter import all_values
from acq.core.quiet import quietly
from acq.errors import RequestError, first_line
from acq.export.sizes import fold_sizes
from acq.export.translations import TRANSLATIONS
from acq.export.writer import Value, Writer
from acq.network.names import name_of
from acq.network.operators import operator_of
from acq.quantization.student import Student

aten = torch.ops.aten
_MOST_IMAGES = 1 << 20
_STANDARD = ("", "ai.onnx")


class NoTranslationError(RequestError):
    """``torch.onnx`` translates some operators of a student neither together nor alone.

    Attributes:
        reasons: Operator and cause of each, by public name; empty where each can be translated alone.
    """

    def __init__(self, reasons: Mapping[str, str], cause: str) -> None:
        name, reason = next(iter(reasons.items()), ("", cause))
        place = f"operator {name} ({reason})" if name else f"the part in floating point ({cause})"
        super().__init__(f"{place} cannot be exported to ONNX; replace it in the network, or do without a file")
        self.reasons = reasons


class FloatOperators:
    """The operators of a student that ``torch.onnx`` translates.

    Args:
        student: The student.
        opset: Version of the ONNX operators.
    """

    def __init__(self, student: Student, opset: int) -> None:
        self.student, self.opset = student, opset
        self._nodes: dict[fx.Node, str] = {}
        self._inputs: dict[fx.Node, str] = {}

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def take(self, writer: Writer, node: fx.Node) -> Value:
        """Leave a node to ``torch.onnx``; its inputs are written in floating point.

        Returns:
            The value of the node, which ``write`` adds to the file.
        """
        for value in node.all_input_nodes:
            if value in writer.values and value not in self._nodes and value.op != "get_attr":
                self._inputs[value] = writer.floats(value)
        self._nodes[node] = f"f{len(self._nodes)}"
        return Value(self._nodes[node])

    def write(self, writer: Writer) -> None:
        """Translate all nodes that were taken and add them to the file.

        Raises:
            RequestError: ``torch.onnx`` does not translate one of them; the message names it.
        """
        if not self._nodes:
            return
        image = next(node for node in self.student.graph.nodes if node.op == "placeholder")
        inputs = {image: self._inputs.get(image, ""), **self._inputs}
        inputs[image] = inputs[image] or writer.floats(image)
        outputs = [node for node in self._nodes if not self._nodes.keys() >= node.users.keys()]
        try:
            found = self._translated(list(self._nodes), list(inputs), outputs)
        except Exception as error:
            raise self._refusal(list(inputs), error) from error
        names = [inputs[node] for node in inputs], [self._nodes[node] for node in outputs]
        _splice(writer, found, *names)

    def is_float(self, node: fx.Node) -> bool:
        """Whether the value of a node is a tensor of floats."""
        value = self._small[node]
        return isinstance(value, Tensor) and value.is_floating_point()

    def kind(self, node: fx.Node) -> int:
        """The ONNX type of a node's numbers in the file: floats, unless ``torch.onnx`` translates it to others."""
        value = self._small[node] if node in self._nodes else None
        if not isinstance(value, Tensor) or value.is_floating_point():
            return int(TensorProto.FLOAT)
        return helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=value.dtype).numpy().dtype)

    @cached_property
    def _small(self) -> dict[fx.Node, Any]:
        return _values(self.student, 2)

    @cached_property
    def _large(self) -> dict[fx.Node, Any]:
        return _values(self.student, 3)

    def _translated(self, nodes: Iterable[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]) -> onnx.ModelProto:
        """The nodes as a model of its own."""
        module = self._part(nodes, inputs, outputs)
        small, large = (tuple(_zeros(values[node]) for node in inputs) for values in (self._small, self._large))
        sizes = tuple(_sizes(two.shape, three.shape) for two, three in zip(small, large, strict=True))
        with quietly():
            program = torch.export.export(module, small, dynamic_shapes=sizes)
            made = torch.onnx.export(
                program, dynamo=True, opset_version=self.opset, optimize=True, verbose=False,
                custom_translation_table=TRANSLATIONS,
            )  # fmt: skip
        assert made is not None
        model: onnx.ModelProto = made.model_proto
        names = [value.name for value in model.graph.input]
        few, more = (
            {name: value.numpy() for name, value in zip(names, given, strict=True)} for given in (small, large)
        )
        fold_sizes(model, few, more)
        return model

    def _part(self, nodes: Iterable[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
        """A module of some nodes: ``inputs``, of which the images are the first, are its arguments."""
        graph, chosen = fx.Graph(), set(nodes)
        copies = {node: graph.placeholder(f"x{place}") for place, node in enumerate(inputs)}
        images = graph.call_function(aten.sym_size.int, (copies[inputs[0]], 0))
        for node in self.student.graph.nodes:
            if node in copies or chosen.isdisjoint([node, *node.users]):
                continue
            if is_size(node):
                factor, rest = _per_image(self._small[node], self._large[node])
                multiple = graph.call_function(operator.mul, (images, factor))
                copies[node] = graph.call_function(operator.add, (multiple, rest))
            elif node in chosen or node.op == "get_attr":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs))
        graph.eliminate_dead_code()
        return fx.GraphModule(self.student, graph)

    def _refusal(self, inputs: list[fx.Node], error: Exception) -> NoTranslationError:
        """The error that names each operator which cannot be translated by itself."""
        reasons: dict[str, str] = {}
        for node in self._nodes:
            own = [value for value in node.all_input_nodes if value.op != "get_attr"]
            tensors = [value for value in own if isinstance(self._small[value], Tensor)]
            try:
                self._translated([node], [inputs[0], *(v for v in tensors if v is not inputs[0])], [node])
            except Exception as cause:
                reasons[name_of(node)] = f"{operator_of(node)}: {first_line(_innermost(cause))}"
        return NoTranslationError(reasons, first_line(_innermost(error)))


def _innermost(error: BaseException) -> BaseException:
    """What made a chain of errors begin."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _values(student: Student, batch: int) -> dict[fx.Node, Any]:
    """The values of all nodes for a batch, without data."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return all_values(student, student.graph, torch.zeros(batch, *student.input_size))


def _zeros(value: Tensor) -> Tensor:
    """A tensor like a value without data."""
    return torch.zeros(value.shape, dtype=value.dtype)


def is_size(node: fx.Node) -> bool:
    """Whether a node returns a number, such as the number of images."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    return operator_of(node).startswith(("aten.sym_size", "_operator."))


def _per_image(two: int, three: int) -> tuple[int, int]:
    """A size as a factor of the number of images and a rest, from its values for two and for three images."""
    return three - two, 3 * two - 2 * three


def _sizes(small: Iterable[int], large: Iterable[int]) -> dict[int, Any]:
    """The sizes that depend on the number of images, as ``torch.export`` takes them.

    Args:
        small: The shape of a value for two images.
        large: For three images.
    """
    images = torch.export.Dim("images", min=1, max=_MOST_IMAGES)
    found: dict[int, Any] = {}
    for axis, (two, three) in enumerate(zip(small, large, strict=True)):
        per_image, rest = _per_image(two, three)
        if per_image:
            size = images if per_image == 1 else per_image * images
            found[axis] = size + rest if rest else size
    return found


def _splice(writer: Writer, model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Add a model's nodes and constants to the file under names that are free there."""
    graph = model.graph
    names = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for constant in graph.initializer:
        names[constant.name] = writer.constant(f"float.{constant.name}", numpy_helper.to_array(constant))
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name in names:  # an output that is an input or another output
            writer.add("Identity", [names[value.name]], name)
        names.setdefault(value.name, name)
    if model.functions or any(node.domain not in _STANDARD for node in graph.node):
        raise RequestError("torch.onnx translates an operator to one outside the ONNX standard; quantize without it")
    for node in graph.node:
        if node.op_type == "Constant":
            names[node.output[0]] = writer.constant(f"float.{node.output[0]}", _constant(node))
            continue
        made = onnx.NodeProto(op_type=node.op_type)
        made.attribute.extend(node.attribute)
        made.input.extend(names[name] if name else "" for name in node.input)
        for name in node.output:
            made.output.append(names.setdefault(name, f"float.{name}") if name else "")
        writer.nodes.append(made)


def _constant(node: onnx.NodeProto) -> Any:
    """The value of a Constant node."""
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if attribute.type == AttributeProto.TENSOR else value
