"""The plan of a student: what each node of a traced network becomes. ``acq.quantization.build`` applies it.

The planner works in three passes. The first assigns a role to each node (``acq.quantization.roles``). The second goes
backwards and finds the bit-width that the consumers of each tensor want. The third goes forwards and places quantizers.
Definitions are this project's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

from torch import Tensor, fx

from acq.errors import RequestError
from acq.network.constants import shape_of
from acq.network.names import name_of
from acq.network.operators import Role, float_inputs, is_float, keeps_zero, operator_of
from acq.quantization.formats import FULL_BITS, NumberFormat
from acq.quantization.node_plan import NodePlan, Placement, Plan
from acq.quantization.roles import LAYERS, WEIGHTED, LayerWidth, Roles, assign_roles
from acq.quantization.surroundings import (
    images_of,
    input_bits,
    reached,
    read_by_layers,
    read_in_float,
    unquantized_logits,
    wanted_bits,
)

_MULTIPLYING = (*WEIGHTED, Role.PRODUCT)
_BETWEEN = "this placement quantizes what layers read alone"


def plan(
    graph: fx.GraphModule,
    format: NumberFormat,
    placement: Placement = "deployable",
    layers: Mapping[str, LayerWidth] = MappingProxyType({}),
) -> Plan:
    """Decide what is quantized in a traced network. Nothing is changed.

    ``deployable`` quantizes every tensor that an integer engine computes: the image, and the output of each operator
    after its batch norm and rectifier. Operators that only move values need no quantizer. ``layers`` is for
    transformers: it quantizes what convolutions and linear layers read, and what a convolution computes, because
    engines run it on integers to a grid alone. ``relu-only`` is the setting of the data-free literature: it quantizes
    the outputs of rectifiers only. Weights are quantized in all placements, the logits in none. A format of weights
    alone has no quantizers of tensors.

    Args:
        graph: The traced network.
        format: The bit-widths.
        placement: Where quantizers are placed.
        layers: Bits of single layers' weights, or ``float`` to keep a layer in floating point, by layer name or shell
            pattern (``layer3.*``). Later entries win, and all of them win over ``format``.

    Returns:
        The plan.

    Raises:
        RequestError: The placement is unknown, a key of ``layers`` matches no layer with weights, or a width is out of
            range.
    """
    known = get_args(Placement)
    if placement not in known:
        raise RequestError(f"placement {placement!r} is unknown; give one of {', '.join(known)}")
    roles = assign_roles(graph, layers)
    wanted = wanted_bits(roles, format)
    return Plan(format, placement, tuple(_Placer(roles, wanted, format, placement).nodes()))


@dataclass(frozen=True)
class _Output:
    """The quantizer of a node's output: its bits, or None and why there is none."""

    bits: int | None
    note: str = ""
    floating: bool = False


class _Placer:
    """Third pass, forwards: one plan per node. ``sources`` has the quantized node that each tensor comes from."""

    def __init__(self, roles: Roles, wanted: Mapping[fx.Node, int], format: NumberFormat, placement: Placement) -> None:
        self.roles = roles
        self.wanted = wanted
        self.format = format
        self.relu_only, self.layers_only = placement == "relu-only", placement == "layers"
        self.sources: dict[fx.Node, tuple[fx.Node, int] | None] = {}
        self.logits = unquantized_logits(roles)
        self.images = images_of(roles)
        self.read_in_float = set() if self.relu_only else read_in_float(roles)
        self.read_by_layers = read_by_layers(roles) if self.layers_only else set()
        self.behind_layers = reached(roles, roles.nodes, lambda node: node.all_input_nodes)
        self.before_layers = reached(roles, reversed(roles.nodes), lambda node: node.users)

    def nodes(self) -> Iterator[NodePlan]:
        for node in self.roles.nodes:
            output, width = self._output(node), self._weight_bits(node)
            self.sources[node] = (node, output.bits) if output.bits else self._common_source(node)
            consumers = tuple(name_of(user) for user in self._requantizing_consumers(node))
            kind = "requantized" if self.sources[node] else "quantized"
            requantized = f"{kind} to {self.format.multiplied} bits for {', '.join(consumers)}" if consumers else ""
            yield NodePlan(
                name=name_of(node),
                operator=operator_of(node),
                role=self.roles.of(node),
                weight_bits=width,
                output_bits=output.bits,
                shape=shape_of(node),
                note="; ".join(filter(None, (self.roles.notes[node], output.note, requantized))),
                floating=output.floating or self.roles.of(node) == Role.FLOAT,
                requantize_for=consumers,
                reduced_range=self.format.reduce_range and width == FULL_BITS,
            )

    def _output(self, node: fx.Node) -> _Output:
        if self.roles.of(node) == Role.SHAPE or not is_float(node):
            return _Output(None, "not a floating-point tensor")
        if self._needs_no_quantizer(node):
            return _Output(None, self._origin(node))
        if not isinstance(node.meta["val"], Tensor):
            return _Output(None, "returns several tensors")
        if node in self.logits:
            return _Output(None, "logits are not quantized")
        if self.roles.of(node) == Role.CONSTANT:
            read = not (self.relu_only or self.format.weights_alone or node in self.read_in_float)
            return _Output(FULL_BITS if read and not self.layers_only else None)
        if self.format.weights_alone:
            is_read = self.roles.of(node) not in (Role.IMAGE, Role.MOVE)
            return _Output(None, "weights alone are quantized", floating=is_read)
        consumer = self._joined(node)
        if consumer is not None:
            return _Output(None, f"belongs to {name_of(consumer)}")
        if self.layers_only and node not in self.images:
            return self._output_between_layers(node)
        if self.relu_only and not self.roles.rectifies(node):
            return _Output(None, "relu-only placement quantizes outputs of rectifiers only", floating=True)
        if node in self.read_in_float and node not in self.images:
            if self._ends_convolution(node):
                return _Output(FULL_BITS)
            is_layer = self.roles.of(node) in (Role.LINEAR, Role.FOLD)
            return _Output(None, "only operators in floating point read it", floating=not is_layer)
        return _Output(self._output_bits(node))

    def _output_between_layers(self, node: fx.Node) -> _Output:
        """The quantizer of a node in the placement ``layers``: where layers alone read it, or a convolution ends."""
        role = self.roles.of(node)
        is_layer = role in (Role.LINEAR, Role.FOLD, Role.RECTIFIER) or self._ends_convolution(node)
        if node in self.read_by_layers:
            return _Output(self.wanted[node], "" if is_layer else _BETWEEN, floating=not is_layer)
        if self._ends_convolution(node):
            return _Output(FULL_BITS)
        return _Output(None, _BETWEEN, floating=not is_layer)

    def _joined(self, node: fx.Node) -> fx.Node | None:
        """The consumer before whose result a node's values are not rounded.

        A grid would undo a lower bound above zero, such as that of a logarithm's input, so such a bound comes last.
        """
        consumer = self.roles.joins_consumer(node)
        if consumer is None:
            return None
        if consumer in self.read_in_float and self.roles.of(consumer) == Role.RECTIFIER and not keeps_zero(consumer):
            return None
        return consumer

    def _ends_convolution(self, node: fx.Node) -> bool:
        """Whether a node is a convolution with what belongs to it, which engines run on integers to a grid alone."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if self.roles.of(node) in (Role.CONVOLUTION, Role.RESCALE):
                return True
            if self.roles.of(node) in (Role.FOLD, Role.RECTIFIER, Role.MAXIMUM):
                waiting += [source for source in float_inputs(node) if self._joined(source) is node]
        return False

    def _output_bits(self, node: fx.Node) -> int:
        if node in self.images:
            return self.format.image
        if self.relu_only:
            return self.format.multiplied
        if self.roles.is_gate_of_own_input(node):
            return max(self.format.nonlinearity, self.format.multiplied)
        if node not in self.before_layers:
            return max(FULL_BITS, self.wanted[node])  # no layer multiplies it, so few bits would only blur the scores
        return self.wanted[node]

    def _needs_no_quantizer(self, node: fx.Node) -> bool:
        """Whether a node moves values, or its inputs share a quantizer whose levels it keeps."""
        if self.roles.of(node) == Role.MOVE and (node not in self.read_by_layers or self._common_source(node)):
            return True
        return self._common_source(node) is not None and self.roles.keeps_levels(node)

    def _origin(self, node: fx.Node) -> str:
        """The note of a node that needs no quantizer."""
        source, inputs = self._common_source(node), float_inputs(node)
        if source is not None:
            return f"uses the quantizer of {name_of(source[0])}"
        return f"passes on {name_of(inputs[0])}" if inputs else "passes on a constant"

    def _common_source(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The quantized node, and its bits, that all inputs of a node come from which keeps their levels."""
        if self.roles.of(node) not in (Role.MOVE, Role.RECTIFIER, Role.CONCAT, Role.MAXIMUM):
            return None
        sources = {self.sources.get(value) for value in self.roles.operands(node)}
        return sources.pop() if len(sources) == 1 else None

    def _requantizing_consumers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Consumers that multiply a node's values and take fewer bits. Images and tables keep their bits."""
        source, bits = self.sources.get(node) or (node, 0)
        if self.layers_only and not bits and not self.format.weights_alone:
            yield from (user for user in node.users if self.roles.of(user) in LAYERS)
        if not bits or source in self.images or self.roles.of(source) == Role.CONSTANT:
            return
        for user in node.users:
            multiplies = self.roles.of(user) in _MULTIPLYING
            if multiplies and input_bits(self.roles, user, self.format) == self.format.multiplied < bits:
                yield user

    def _weight_bits(self, node: fx.Node) -> int | None:
        role = self.roles.of(node)
        if role not in WEIGHTED:
            return None
        if node in self.roles.widths:
            return self.roles.widths[node]
        if role == Role.RESCALE:
            return FULL_BITS  # one number per channel, in which few bits would save nothing
        # the first layer has no layer before it or takes images, the last one has none behind it
        source = self.sources.get(float_inputs(node)[0])
        takes_images = source is not None and source[0] in self.images
        is_inner = node in self.behind_layers and node in self.before_layers and not takes_images
        return self.format.weight if is_inner else self.format.first_last or self.format.weight
