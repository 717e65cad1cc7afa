"""First pass of the planner: the role of each node. Definitions are this project's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from torch import fx

from acq.errors import RequestError
from acq.network.affine import Affine, affine_of
from acq.network.constants import constant, shape_of
from acq.network.names import name_of
from acq.network.operators import (
    DIVIDE,
    FLOAT_BY_DESIGN,
    GATED,
    RELU,
    ROLES,
    Role,
    float_inputs,
    is_constant,
    is_float,
    operator_of,
    pads_with_values,
    repeats,
    sole_user,
)
from acq.quantization.formats import WIDTHS

LayerWidth = int | Literal["float"]
FLOAT: Literal["float"] = "float"
KEPT = "kept in floating point"
_BY_DESIGN = "engines compute it in floating point"
LAYERS = (Role.CONVOLUTION, Role.LINEAR)
WEIGHTED = (*LAYERS, Role.RESCALE)
_TAKING_TABLES = (Role.ADD, Role.PRODUCT, Role.CONCAT)
_SUGGESTIONS = 3  # layer names in an error


@dataclass(frozen=True)
class Host:
    """A layer into which constants are folded, and the axis of its output's channels."""

    layer: fx.Node
    axis: int


@dataclass(frozen=True)
class Roles:
    """The nodes of a traced network and what the settings say of each one.

    Attributes:
        nodes: The placeholder, the operators and the tables, in order of execution.
        by_node: The role of each of them.
        notes: Why a node has its role; empty where the operator alone decides.
        layers: Convolutions and linear layers with constant weights, those kept in floating point included.
        widths: Bit-widths that the settings give to single layers.
        kept: Layers that the settings keep in floating point.
        float_norms: The batch norms that belong to them.
        tables: Constants that are added, multiplied or joined to values as tensors, and what only moves them.
    """

    nodes: tuple[fx.Node, ...]
    by_node: Mapping[fx.Node, Role]
    notes: Mapping[fx.Node, str]
    layers: frozenset[fx.Node]
    widths: Mapping[fx.Node, int]
    kept: frozenset[fx.Node]
    float_norms: frozenset[fx.Node]
    tables: frozenset[fx.Node]

    def of(self, node: fx.Node) -> Role:
        """The role of a node; ``CONSTANT`` for a parameter, a buffer and the output."""
        return self.by_node.get(node, Role.CONSTANT)

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The floating-point inputs of a node that may have a quantizer: tables, and no other constants."""
        inputs = float_inputs(node)
        return [*inputs, *(value for value in node.all_input_nodes if value in self.tables and value not in inputs)]

    def keeps_levels(self, node: fx.Node) -> bool:
        """Whether a node's values are its inputs' values, or zero: quantized inputs give quantized outputs."""
        return self.of(node) in (Role.MOVE, Role.CONCAT, Role.MAXIMUM) or operator_of(node) == RELU

    def is_gate_of_own_input(self, node: fx.Node) -> bool:
        """Whether a node is the s(x) of ``x * s(x)``, which engines evaluate as one table."""
        user = sole_user(node)
        if self.of(node) != Role.NONLINEARITY or user is None:
            return False
        return self.of(user) == Role.PRODUCT and float_inputs(node)[0] in float_inputs(user)

    def rectifies(self, node: fx.Node) -> bool:
        """Whether a node is an activation function of the literature: a rectifier, or a gate times its input."""
        if self.of(node) == Role.PRODUCT:
            return any(self.is_gate_of_own_input(factor) for factor in float_inputs(node))
        return self.of(node) == Role.RECTIFIER or operator_of(node) in GATED

    def joins_consumer(self, node: fx.Node) -> fx.Node | None:
        """The consumer that computes a node's output further before it is quantized.

        It is a batch norm, a rectifier, or a maximum. Rounding is monotone, so an engine quantizes the inputs of a
        maximum with the quantizer behind it.
        """
        user = sole_user(node)
        if user is None or self.of(node) in (Role.IMAGE, Role.NONLINEARITY):
            return None
        joined = (Role.FOLD, Role.RECTIFIER, Role.MAXIMUM)
        return user if self.of(user) in joined or user in self.float_norms else None


def assign_roles(graph: fx.GraphModule, layers: Mapping[str, LayerWidth]) -> Roles:
    """Assign a role to each node of a traced network.

    Args:
        graph: The traced network; it does not change.
        layers: Bit-width, or ``float``, by layer name or shell pattern; later entries win.

    Returns:
        The roles.

    Raises:
        RequestError: A key matches no layer with weights, or a value is neither 2 to 8 nor ``float``.
    """
    roles: dict[fx.Node, Role] = {}
    notes: dict[fx.Node, str] = {}
    hosts: dict[fx.Node, Host] = {}
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "call_function"):
            continue
        roles[node], notes[node] = _role(graph, node, hosts)
        host = _host(node, roles[node], hosts)
        if host is not None:
            hosts[node] = host
    tables = _tables(graph, roles)
    notes |= {node: "" for node in tables if node not in roles}
    nodes = tuple(node for node in graph.graph.nodes if node in notes)
    weighted = {name_of(node): node for node in nodes if roles.get(node) in WEIGHTED}
    settings = {weighted[name]: width for name, width in _matched(layers, weighted).items()}
    constant_layers = frozenset(node for node in nodes if roles.get(node) in LAYERS)
    kept = frozenset(node for node, width in settings.items() if width == FLOAT)
    norms = []
    for layer in kept:
        roles[layer], notes[layer] = Role.FLOAT, KEPT
        user = sole_user(layer)
        while user is not None and roles.get(user) == Role.FOLD:
            roles[user], notes[user] = Role.FLOAT, f"follows {name_of(layer)}, which is {KEPT}"
            norms.append(user)
            user = sole_user(user)
    widths = {node: width for node, width in settings.items() if isinstance(width, int)}
    return Roles(nodes, roles, notes, constant_layers, widths, kept, frozenset(norms), tables)


def _matched(layers: Mapping[str, LayerWidth], names: Iterable[str]) -> dict[str, LayerWidth]:
    """The setting of each layer that a key names or matches."""
    known = list(names)
    found: dict[str, LayerWidth] = {}
    for key, width in layers.items():
        if width != FLOAT and width not in WIDTHS:
            raise RequestError(f"bits out of range: layers.{key} {width}; give 2 to 8, or {FLOAT}")
        matches = [name for name in known if name == key or fnmatchcase(name, key)]
        if not matches:
            close = ", ".join(get_close_matches(key, known, _SUGGESTIONS, cutoff=0.0))
            raise RequestError(f"layers: {key!r} matches no layer with weights; the nearest names are: {close}")
        found |= dict.fromkeys(matches, width)
    return found


def _role(graph: fx.GraphModule, node: fx.Node, hosts: Mapping[fx.Node, Host]) -> tuple[Role, str]:
    """A node's role, and the reason where the operator alone does not decide it."""
    operator = operator_of(node)
    role = Role.IMAGE if node.op == "placeholder" else ROLES.get(operator)
    if role is None:
        why = _BY_DESIGN if operator in FLOAT_BY_DESIGN else f"operator {operator} is not supported"
        return (Role.FLOAT, why) if is_float(node) else (Role.SHAPE, "")
    if role in LAYERS and constant(graph, node.args[1]) is None:
        return Role.FLOAT, "its weight is computed, not constant"
    affine = affine_of(graph, node)
    found = None if affine is None else _affine_role(affine, node, hosts)
    if found is not None:
        return found
    if role == Role.BATCH_NORM:
        return Role.FLOAT, _why_float(affine)
    if pads_with_values(node):
        return Role.PAD, ""
    if repeats(node):
        return Role.MOVE, "each window has one value"
    if role in (*_TAKING_TABLES, Role.MAXIMUM) and any(map(is_constant, node.all_input_nodes)):
        if affine is not None and affine.axis in (1, len(shape_of(node)) - 1):
            return Role.FLOAT, "its constants, one per channel, follow no layer"
        if role == Role.MAXIMUM:
            return Role.FLOAT, "one of its operands is a floating-point constant"
    if operator == DIVIDE and isinstance(node.args[1], fx.Node):
        return Role.FLOAT, "it divides by computed values"
    return role, ""


def _affine_role(affine: Affine, node: fx.Node, hosts: Mapping[fx.Node, Host]) -> tuple[Role, str] | None:
    """Fold constants into the layer before them if possible; one per channel otherwise becomes a convolution.

    None where it is neither: engines add and multiply one number per tensor as it is.
    """
    host = hosts.get(affine.source) if sole_user(affine.source) is not None else None
    if host is not None and affine.axis in (None, host.axis):
        return Role.FOLD, f"folded into {name_of(host.layer)}"
    if len(shape_of(node)) == 4 and affine.axis == 1:
        return Role.RESCALE, "becomes a depthwise 1 x 1 convolution"
    return None


def _host(node: fx.Node, role: Role, hosts: Mapping[fx.Node, Host]) -> Host | None:
    """The layer that computes a node, constants folded into it included."""
    if role == Role.FOLD:
        return next(hosts[value] for value in node.all_input_nodes if value in hosts)
    if role not in WEIGHTED:
        return None
    return Host(node, len(shape_of(node)) - 1 if role == Role.LINEAR else 1)


def _tables(graph: fx.GraphModule, roles: Mapping[fx.Node, Role]) -> frozenset[fx.Node]:
    """Constants that engines add, multiply or join to values, such as maps of coordinates, and what moves them."""
    moved: set[fx.Node] = set()
    for node in graph.graph.nodes:
        inputs = [value for value in node.all_input_nodes if is_float(value)]
        moves = roles.get(node) == Role.MOVE and bool(inputs) and moved.issuperset(inputs)
        if is_float(node) and (node.op == "get_attr" or moves):
            moved.add(node)
    found: set[fx.Node] = set()
    for node in reversed(list(graph.graph.nodes)):
        if node in moved and any(user in found or roles.get(user) in _TAKING_TABLES for user in node.users):
            found.add(node)
    return frozenset(found)


def _why_float(norm: Affine | None) -> str:
    if norm is None:
        return "its statistics are not constant"
    return "it follows no layer and its input is not [N, C, H, W]"
