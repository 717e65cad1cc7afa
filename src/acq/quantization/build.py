"""Builds a student: copies a traced network into a new graph in which layers and quantizers are modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from acq.core.batchnorm import batch_norm_affine
from acq.core.values import Preprocessing
from acq.network.names import name_of
from acq.network.operators import Role
from acq.network.trace import constant
from acq.quantization.layers import QuantConv2d, QuantLayer, QuantLinear
from acq.quantization.plan import NodePlan, Plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.roles import LAYERS
from acq.quantization.student import Student

_GEOMETRY = ("stride", "padding", "dilation", "groups")  # arguments 3 to 6 of a convolution


def build(graph: fx.GraphModule, plan: Plan, preprocessing: Preprocessing | None = None) -> Student:
    """Build the student that a plan describes.

    Args:
        graph: The traced network; it does not change.
        plan: The plan of this network.
        preprocessing: How images are normalised, if known.

    Returns:
        A student with its own copy of the weights. Its quantizers are not calibrated.
    """
    return _Builder(graph, plan, preprocessing).student()


def attach(root: nn.Module, path: str, value: nn.Module | Tensor) -> str:
    """Register a module or a buffer under a dotted path, with ``_`` appended while a name is taken.

    Args:
        root: Where the path begins.
        path: The path; missing parents become empty modules.
        value: The module, or the buffer's tensor.

    Returns:
        The path under which it was registered.
    """
    *parents, leaf = path.split(".")
    holder = root
    for depth, part in enumerate(parents):
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        inner = getattr(holder, part)
        if not isinstance(inner, nn.Module):
            return attach(root, ".".join([*parents[:depth], part + "_", *parents[depth + 1 :], leaf]), value)
        holder = inner
    while hasattr(holder, leaf):
        leaf += "_"
    if isinstance(value, Tensor):
        holder.register_buffer(leaf, value)
    else:
        holder.add_module(leaf, value)
    return ".".join([*parents, leaf])


class _Builder:
    """Copies the graph node by node. ``copies`` and ``requantized`` have the new node of each traced one."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, preprocessing: Preprocessing | None) -> None:
        self.source = graph
        self.plans = {node.name: node for node in plan.nodes}
        self.power_of_two_scales = plan.format.power_of_two_scales
        self.activation_bits = plan.format.activation
        self.graph = fx.Graph()
        self.built = Student(self.graph, plan, preprocessing)
        self.names = {name_of(node) for node in graph.graph.nodes}
        self.copies: dict[fx.Node, fx.Node] = {}
        self.requantized: dict[fx.Node, fx.Node] = {}

    def student(self) -> Student:
        for node in self.source.graph.nodes:
            if node.op == "output":
                returned: Any = node.args[0]
                logits = returned[0] if isinstance(returned, tuple | list) else returned
                self._add("output", "output", (self.copies[logits],), name_of(node), ())
            elif node.op == "placeholder" or (node.op == "call_function" and node.users):
                # a node without users is an assertion of the trace
                self.copies[node] = self._copy(node, self.plans[name_of(node)])
        return self.built

    def _add(self, op: str, target: Any, args: tuple[Any, ...], name: str, shape: tuple[int, ...]) -> fx.Node:
        node = self.graph.create_node(op, target, args, name=name)
        node.meta = {"name": name, "shape": shape}
        return node

    def _copy(self, node: fx.Node, plan: NodePlan) -> fx.Node:
        if plan.role in LAYERS and self._is_folded(node):
            # the layer runs under the batch norm's name: its own output does not exist
            return self.copies[_input(node)]
        if plan.role == Role.IMAGE:
            copy = self._add("placeholder", plan.name, (), plan.name, plan.shape)
        elif plan.role in (*LAYERS, Role.RESCALE, Role.FOLD):
            copy = self._layer(node, plan)
        else:
            copy = self.graph.node_copy(node, lambda value: self._input_for(value, node))
            copy.meta = {"name": plan.name, "shape": plan.shape}
        if plan.output_bits:
            copy = self._quantizer(copy, plan)
        if plan.requantize_for:
            self.requantized[node] = self._requantizer(copy, plan)
        return copy

    def _is_folded(self, layer: fx.Node) -> bool:
        users = [self.plans.get(name_of(user)) for user in layer.users]
        return len(users) == 1 and users[0] is not None and users[0].role == Role.FOLD

    def _input_for(self, value: fx.Node, consumer: fx.Node) -> fx.Node:
        """The new node that a consumer takes: the copy, or the one with fewer bits."""
        if value in self.requantized and name_of(consumer) in self.plans[name_of(value)].requantize_for:
            return self.requantized[value]
        return self._copied(value)

    def _copied(self, node: fx.Node) -> fx.Node:
        """A node's copy. A constant becomes a buffer of the student when it is first used."""
        if node not in self.copies:
            value = constant(self.source, node)
            assert value is not None
            path = attach(self.built, str(node.target), value.detach().clone())
            self.copies[node] = self._add("get_attr", path, (), name_of(node), tuple(value.shape))
        return self.copies[node]

    def _quantizer(self, copy: fx.Node, plan: NodePlan) -> fx.Node:
        assert plan.output_bits is not None
        quantizer = ActivationQuantizer(plan.output_bits, plan.name, power_of_two_scales=self.power_of_two_scales)
        return self._run(quantizer, copy, self._unused(f"{plan.name}_quantizer"))

    def _requantizer(self, copy: fx.Node, plan: NodePlan) -> fx.Node:
        name = self._unused(f"{plan.name}_requantizer")
        has_channels = len(plan.shape) in (2, 4) and plan.shape[1] > 0  # [N, C] or [N, C, H, W]
        quantizer = ActivationQuantizer(
            self.activation_bits,
            name,
            power_of_two_scales=self.power_of_two_scales,
            channels=plan.shape[1] if has_channels else None,
        )
        return self._run(quantizer, copy, name)

    def _run(self, quantizer: ActivationQuantizer, source: fx.Node, name: str) -> fx.Node:
        return self._add("call_module", attach(self.built, name, quantizer), (source,), name, source.meta["shape"])

    def _unused(self, name: str) -> str:
        """The name, with ``_`` appended while another node has it."""
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _layer(self, node: fx.Node, plan: NodePlan) -> fx.Node:
        layer = _input(node) if plan.role == Role.FOLD else node
        layer_plan = self.plans[name_of(layer)]
        module = self._layer_module(node, layer, layer_plan)
        source = self._input_for(_input(layer), layer)
        return self._add("call_module", attach(self.built, module.name, module), (source,), plan.name, plan.shape)

    def _layer_module(self, node: fx.Node, layer: fx.Node, plan: NodePlan) -> QuantLayer:
        weight, bias = self._weights(node, layer, plan)
        assert plan.weight_range_bits is not None
        quantizer = WeightQuantizer(
            len(weight), plan.weight_range_bits, plan.name, power_of_two_scales=self.power_of_two_scales
        )
        if plan.role == Role.LINEAR:
            return QuantLinear(weight, bias, quantizer)
        geometry = {"groups": len(weight)} if plan.role == Role.RESCALE else _geometry(layer)
        return QuantConv2d(weight, bias, quantizer, geometry)

    def _weights(self, node: fx.Node, layer: fx.Node, plan: NodePlan) -> tuple[Tensor, Tensor | None]:
        if plan.role == Role.RESCALE:
            factor, shift = _affine(self.source, node)
            return factor.view(-1, 1, 1, 1).clone(), shift
        weight = constant(self.source, layer.args[1])
        bias = constant(self.source, _argument(layer, 2, "bias"))
        assert weight is not None
        if layer is node:
            return weight.detach().clone(), None if bias is None else bias.detach().clone()
        # y = factor * (W x + b) + shift with one factor per output channel
        factor, shift = _affine(self.source, node)
        folded = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
        return folded, shift if bias is None else shift + factor * bias


def _affine(graph: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as ``factor * x + shift``, [C] each."""
    weight, bias, mean, var = (constant(graph, value) for value in norm.args[1:5])
    epsilon = norm.args[7]
    assert mean is not None
    assert var is not None
    assert isinstance(epsilon, float)
    return batch_norm_affine(weight, bias, mean, var, epsilon)


def _geometry(layer: fx.Node) -> dict[str, Any]:
    given = {name: _argument(layer, position, name) for position, name in enumerate(_GEOMETRY, 3)}
    return {name: list(v) if isinstance(v, list | tuple) else v for name, v in given.items() if v is not None}


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _input(node: fx.Node) -> fx.Node:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    return value
