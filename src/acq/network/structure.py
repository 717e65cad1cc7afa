"""What the graph says about a network: its batch normalizations, last spatial features and head."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from acq.core.outputs import Answer, Traits
from acq.network.affine import affine_of
from acq.network.axes import SHAPES
from acq.network.constants import shape_of
from acq.network.features import Features, features_of
from acq.network.outputs import answer_of, logits_of
from acq.network.trace import aten, is_depthwise

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)
_LAYERS = (aten.linear.default, aten.conv2d.default, aten.conv2d.padding)
RESHAPES = (*SHAPES, aten._unsafe_view.default, aten.split.Tensor, operator.getitem)


@dataclass(frozen=True)
class NetworkStructure:
    """The nodes of a traced network that the teacher reads.

    Attributes:
        features: The last features with places before the layer of the logits; None where the network has none.
        norms: The batch normalizations over images, in order of execution; none in a network without them.
        head: The weight [K, C] that turns pooled features into logits; None when the head is anything else, or the
            network does not answer for images as a whole.
        last_weight: The weight [K, ...] of the linear layer or convolution that ends in the logits, with a row per
            logit; None when they come from anything else, or the network does not answer for images as a whole.
        logits: For each tensor that counts, the node whose values are its logits.
        answer: What the network returns, and how it decides.
        depthwise: Whether a convolution is depthwise.
    """

    features: Features | None
    norms: tuple[fx.Node, ...]
    head: fx.Node | None
    last_weight: fx.Node | None
    logits: tuple[fx.Node, ...]
    answer: Answer
    depthwise: bool

    @property
    def traits(self) -> Traits:
        """What the settings of a run depend on."""
        return self.answer.output.traits(normalised=self.normalised, spatial=self.features is not None)

    @property
    def normalised(self) -> bool:
        """Whether statistics of the training data are stored."""
        return bool(self.norms)


def structure_of(graph: fx.GraphModule) -> NetworkStructure:
    """Find features, batch normalizations and head by operator and shape, never by name."""
    nodes = list(graph.graph.nodes)
    norms = tuple(n for n in nodes if n.target is aten.batch_norm.default and len(shape_of(n)) == 4)
    logits = logits_of(graph)
    features = features_of(nodes, _ancestors(logits).difference(*(_up_to_constants(graph, node) for node in logits)))
    answer = answer_of(graph)
    whole = answer.output.whole
    last = None if whole is None else _last_layer(graph, logits[0], whole.size)
    weight = None if last is None else last.all_input_nodes[1]
    head = weight if features is not None and last is not None and _reads_pooled(last, features) else None
    return NetworkStructure(features, norms, head, weight, logits, answer, is_depthwise(graph))


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _up_to_constants(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """A node and those that it follows by constants alone, such as a bias: a student may compute them as one layer."""
    found = [node]
    while (affine := affine_of(graph, found[-1])) is not None:
        found.append(affine.source)
    return found


def _last_layer(graph: fx.GraphModule, logits: fx.Node, size: int) -> fx.Node | None:
    """The linear layer or convolution with a row per logit whose values are the logits.

    Between them there may be means over places, a bias, and positive factors such as a temperature.
    """
    node: object = logits
    while isinstance(node, fx.Node):
        if node.target in (*RESHAPES, *POOLS):
            node = node.args[0]
        elif (affine := affine_of(graph, node)) is not None and bool((affine.factor > 0).all()):
            node = affine.source
        else:
            break
    if not (isinstance(node, fx.Node) and node.target in _LAYERS):
        return None
    weight = node.args[1]
    grouped = node.args[6:7] not in ((), (1,))  # then rows weigh different channels
    return node if isinstance(weight, fx.Node) and shape_of(weight)[0] == size and not grouped else None


def _reads_pooled(layer: fx.Node, features: Features) -> bool:
    """Whether a last layer is linear and reads pooled features: walk back from it to the features."""
    if layer.target is not aten.linear.default or shape_of(layer.all_input_nodes[1])[1] != features.channels:
        return False
    pooled, node = False, layer.args[0]
    while isinstance(node, fx.Node) and node is not features.node:
        if node.target in POOLS:
            pooled = shape_of(node)[1:2] == (features.channels,)  # over space, not over channels
        elif node.target not in RESHAPES:
            return False
        node = node.args[0]
    return pooled and node is features.node
