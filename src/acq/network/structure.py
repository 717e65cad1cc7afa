"""What the graph says about a network: its batch normalizations, last spatial features and head."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from acq.core.outputs import Answer, Traits
from acq.errors import RequestError
from acq.network.constants import shape_of
from acq.network.outputs import SHAPES, answer_of, logits_of
from acq.network.trace import aten, is_depthwise

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)
RESHAPES = (*SHAPES, aten._unsafe_view.default, aten.split.Tensor, operator.getitem)
_MAKERS = (
    aten.conv2d.default, aten.conv2d.padding, aten.convolution.default, aten.conv_transpose2d.input,
    aten.batch_norm.default,
)  # fmt: skip
_REARRANGE = (
    aten.flatten.using_ints, aten.unflatten.int, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.t.default,
)  # fmt: skip
_MIX = (aten.linear.default, aten.matmul.default, aten.bmm.default, aten.mm.default, aten.addmm.default)
_LEAST_CELLS = 4  # of a feature map in which attention has a position


@dataclass(frozen=True)
class NetworkStructure:
    """The nodes of a traced network that the teacher reads.

    Attributes:
        features: The last spatial feature map before the logits.
        norms: The batch normalizations over images, in order of execution; none in a network without them.
        head: The weight [K, C] that turns pooled features into logits; None when the head is anything else, or the
            network does not answer for images as a whole.
        logits: For each tensor that counts, the node whose values are its logits.
        answer: What the network returns, and how it decides.
        depthwise: Whether a convolution is depthwise.
    """

    features: fx.Node
    norms: tuple[fx.Node, ...]
    head: fx.Node | None
    logits: tuple[fx.Node, ...]
    answer: Answer
    depthwise: bool

    @property
    def traits(self) -> Traits:
        """What the settings of a run depend on."""
        return self.answer.output.traits(normalised=self.normalised)

    @property
    def normalised(self) -> bool:
        """Whether statistics of the training data are stored."""
        return bool(self.norms)


def structure_of(graph: fx.GraphModule) -> NetworkStructure:
    """Find features, batch normalizations and head by operator and shape, never by name.

    Raises:
        RequestError: The network has no spatial features.
    """
    nodes = list(graph.graph.nodes)
    norms = tuple(n for n in nodes if n.target is aten.batch_norm.default and len(shape_of(n)) == 4)
    logits = logits_of(graph)
    ancestors, maps = _ancestors(logits), _maps(nodes)
    before = [node for node in maps if node in ancestors and node not in logits]
    spatial = [node for node in before if math.prod(maps[node]) >= _LEAST_CELLS]
    if not spatial:
        raise RequestError(
            f"the network has no feature map [N, C, H, W] with at least {_LEAST_CELLS} cells before its logits; "
            "give a larger --input-size, or a convolutional network"
        )
    features = spatial[-1]
    answer = answer_of(graph)
    head = _linear_head(logits[0], features) if answer.output.whole is not None else None
    return NetworkStructure(features, norms, head, logits, answer, is_depthwise(graph))


def _maps(nodes: list[fx.Node]) -> dict[fx.Node, tuple[int, ...]]:
    """The height and width of every node that is a map of features.

    A convolution or a batch norm makes a map, and an operator on a map keeps it. An operator that rearranges or mixes
    places, such as a reshape, gives a map again only if height and width are those of before. So a channel shuffle is
    a map, and attention heads [N, heads, places, d] are none.
    """
    maps: dict[fx.Node, tuple[int, ...]] = {}
    rearranged: dict[fx.Node, tuple[int, ...]] = {}
    for node in nodes:
        shape = shape_of(node)
        places = [maps[source] for source in node.all_input_nodes if source in maps]
        if node.op != "call_function":
            continue
        if len(shape) == 4 and (node.target in _MAKERS or (places and node.target not in (*_REARRANGE, *_MIX))):
            maps[node] = shape[2:]
        elif node.target in _REARRANGE:
            places += [rearranged[source] for source in node.all_input_nodes if source in rearranged]
            if len(shape) == 4 and shape[2:] in places:
                maps[node] = shape[2:]
            elif places:
                rearranged[node] = places[0]
    return maps


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _linear_head(logits: fx.Node, features: fx.Node) -> fx.Node | None:
    """The weight of a head that is pooling and one linear layer: walk back from the logits to the features."""
    while logits.target in RESHAPES and isinstance(logits.args[0], fx.Node):
        logits = logits.args[0]
    if logits.target is not aten.linear.default:
        return None
    pooled = False
    node, weight = logits.args[0], logits.args[1]
    while isinstance(node, fx.Node) and node is not features:
        if node.target in POOLS:
            pooled = shape_of(node)[1:2] == shape_of(features)[1:2]  # over space, not over channels
        elif node.target not in RESHAPES:
            return None
        node = node.args[0]
    if not (isinstance(weight, fx.Node) and pooled and node is features):
        return None
    return weight if shape_of(features)[1] == shape_of(weight)[1] else None
