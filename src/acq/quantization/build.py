"""Builds a student: copies a traced network into a new graph in which layers and quantizers are modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from acq.core.values import Preprocessing
from acq.network.affine import HOMOGENEOUS, Affine, affine_of, composed, folded, sizes
from acq.network.constants import constant
from acq.network.names import name_of
from acq.network.operators import Role, operator_of, sole_user
from acq.network.outputs import answer_of, returned_nodes
from acq.quantization.layers import QuantConv2d, QuantLayer, QuantLinear
from acq.quantization.node_plan import NodePlan, Plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.roles import LAYERS, WEIGHTED
from acq.quantization.student import Student

# layers that read channels on the second axis, by the axes of their input
_CHANNELS_SECOND = {2: (Role.LINEAR,), 4: (Role.CONVOLUTION, Role.RESCALE)}
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
        inner = holder._modules.get(part)
        if inner is None and _is_taken(holder, part):
            return attach(root, ".".join([*parents[:depth], part + "_", *parents[depth + 1 :], leaf]), value)
        if inner is None:
            inner = nn.Module()
            holder.add_module(part, inner)
        holder = inner
    while _is_taken(holder, leaf):
        leaf += "_"
    if isinstance(value, Tensor):
        holder.register_buffer(leaf, value)
    else:
        holder.add_module(leaf, value)
    return ".".join([*parents, leaf])


def _is_taken(holder: nn.Module, name: str) -> bool:
    """Whether a module has an attribute of that name; a property is not evaluated."""
    own = (vars(holder), holder._modules, holder._parameters, holder._buffers)
    return hasattr(type(holder), name) or any(name in names for names in own)


class _Builder:
    """Copies the graph node by node. ``copies`` and ``requantized`` have the new node of each traced one."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, preprocessing: Preprocessing | None) -> None:
        self.source = graph
        self.plans = {node.name: node for node in plan.nodes}
        self.format = plan.format
        self.graph = fx.Graph()
        self.built = Student(self.graph, plan, answer_of(graph), preprocessing)
        self.names = {name_of(node) for node in graph.graph.nodes}
        self.copies: dict[fx.Node, fx.Node] = {}
        self.requantized: dict[fx.Node, fx.Node] = {}
        self.relieved: set[fx.Node] = set()  # rescalings whose factors the layer before has taken over

    def student(self) -> Student:
        for node in self.source.graph.nodes:
            if node.op == "output":
                returned = tuple(map(self._copied, returned_nodes(self.source.graph)))
                self._add("output", "output", (returned,), name_of(node), ())
            elif node.op == "placeholder" or (node.op == "call_function" and node.users):
                # a node without users is an assertion of the trace
                self.copies[node] = self._copy(node, self.plans[name_of(node)])
        return self.built

    def _add(self, op: str, target: Any, args: tuple[Any, ...], name: str, shape: tuple[int, ...]) -> fx.Node:
        node = self.graph.create_node(op, target, args, name=name)
        node.meta = {"name": name, "shape": shape}
        return node

    def _copy(self, node: fx.Node, plan: NodePlan) -> fx.Node:
        if plan.role in (*WEIGHTED, Role.FOLD) and self._is_folded(node):
            # the layer runs under the name of the last constant folded into it: its own output does not exist
            return self.copies[self._source(node)]
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
            self.requantized[node] = self._requantizer(node, copy, plan)
        return copy

    def _is_folded(self, node: fx.Node) -> bool:
        """Whether the node's only consumer is folded into the layer that computes it."""
        user = sole_user(node)
        return user is not None and self._has_role(user, Role.FOLD)

    def _has_role(self, node: fx.Node, *roles: Role) -> bool:
        return name_of(node) in self.plans and self.plans[name_of(node)].role in roles

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
            copy = self._add("get_attr", path, (), name_of(node), tuple(value.shape))
            plan = self.plans.get(name_of(node))
            self.copies[node] = copy if plan is None or not plan.output_bits else self._quantizer(copy, plan)
        return self.copies[node]

    def _quantizer(self, copy: fx.Node, plan: NodePlan) -> fx.Node:
        assert plan.output_bits is not None
        quantizer = ActivationQuantizer(
            plan.output_bits, plan.name, power_of_two_scales=self.format.power_of_two_scales
        )
        return self._run(quantizer, copy, self._unused(f"{plan.name}_quantizer"))

    def _requantizer(self, node: fx.Node, copy: fx.Node, plan: NodePlan) -> fx.Node:
        name = self._unused(f"{plan.name}_requantizer")
        readers = [user for user in node.users if name_of(user) in plan.requantize_for]
        roles = _CHANNELS_SECOND.get(len(plan.shape))
        has_channels = roles is not None and plan.shape[1] > 0 and all(self._has_role(user, *roles) for user in readers)
        quantizer = ActivationQuantizer(
            self.format.multiplied,
            name,
            power_of_two_scales=self.format.power_of_two_scales,
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
        layer, constants = self._hosted(node)
        module = self._layer_module(layer, constants, self._taken_over(node))
        source = self._input_for(self._source(layer), layer)
        return self._add("call_module", attach(self.built, module.name, module), (source,), plan.name, plan.shape)

    def _hosted(self, node: fx.Node) -> tuple[fx.Node, list[Affine]]:
        """The layer that computes a node, and the constants folded into it in order of execution."""
        constants: list[Affine] = []
        while not self._has_role(node, *LAYERS):
            affine = affine_of(self.source, node)
            assert affine is not None
            constants.insert(0, affine)
            if self._has_role(node, Role.RESCALE):
                break
            node = affine.source
        return node, constants

    def _source(self, node: fx.Node) -> fx.Node:
        affine = affine_of(self.source, node)
        return _input(node) if affine is None else affine.source

    def _taken_over(self, node: fx.Node) -> Tensor | None:
        """The sizes of the factors of a rescaling behind a layer, which the layer takes over.

        What stands between them keeps the order of values. The tensor in between then has the result's range in every
        channel, and is rounded as finely.
        """
        user = sole_user(node)
        while user is not None and user.op == "call_function" and operator_of(user) in HOMOGENEOUS:
            user = sole_user(user)
        if user is None or not self._has_role(user, Role.RESCALE):
            return None
        self.relieved.add(user)
        return sizes(self._rescaling(user)[0])

    def _rescaling(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Factor and shift of a rescaling, with the constants behind it that are folded into it."""
        constants = [node]
        while self._is_folded(constants[-1]):
            constants += constants[-1].users
        return composed([affine for node in constants if (affine := affine_of(self.source, node))])

    def _layer_module(self, layer: fx.Node, constants: list[Affine], taken_over: Tensor | None) -> QuantLayer:
        plan = self.plans[name_of(layer)]
        weight, bias = self._weights(layer, constants)
        if taken_over is not None:
            weight, bias = folded(weight, bias, taken_over, torch.zeros_like(taken_over))
        assert plan.weight_range_bits is not None
        quantizer = WeightQuantizer(
            len(weight), plan.weight_range_bits, plan.name, power_of_two_scales=self.format.power_of_two_scales
        )
        if plan.role == Role.LINEAR:
            return QuantLinear(weight, bias, quantizer)
        geometry = {"groups": len(weight)} if plan.role == Role.RESCALE else _geometry(layer)
        return QuantConv2d(weight, bias, quantizer, geometry)

    def _weights(self, layer: fx.Node, constants: list[Affine]) -> tuple[Tensor, Tensor | None]:
        if self._has_role(layer, Role.RESCALE):
            factor, shift = composed(constants)
            factor = factor / sizes(factor) if layer in self.relieved else factor
            return factor.view(-1, 1, 1, 1).clone(), shift.clone()
        weight = constant(self.source, layer.args[1])
        bias = constant(self.source, _argument(layer, 2, "bias"))
        assert weight is not None
        weight, bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
        for affine in constants:
            weight, bias = folded(weight, bias, affine.factor, affine.shift)
        return weight, bias


def _geometry(layer: fx.Node) -> dict[str, Any]:
    given = {name: _argument(layer, position, name) for position, name in enumerate(_GEOMETRY, 3)}
    return {name: list(v) if isinstance(v, list | tuple) else v for name, v in given.items() if v is not None}


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _input(node: fx.Node) -> fx.Node:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    return value
