"""What the graph says about a network: its batch normalizations, last spatial features and head."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from acq.core.outputs import Answer
from acq.errors import RequestError
from acq.network.constants import shape_of
from acq.network.outputs import answer_of, logits_of
from acq.network.trace import aten, is_depthwise

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)
RESHAPES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.split.Tensor, operator.getitem,
)  # fmt: skip
_LEAST_CELLS = 4  # of a feature map in which attention has a position


@dataclass(frozen=True)
class NetworkStructure:
    """The nodes of a traced network that the teacher reads.

    Attributes:
        features: The last spatial feature map before the logits.
        norms: The batch normalizations over images, in order of execution.
        head: The weight [K, C] that turns pooled features into logits; None when the head is anything else.
        logits: The node whose values are the logits.
        answer: What the network returns, and how it decides.
        depthwise: Whether a convolution is depthwise.
    """

    features: fx.Node
    norms: tuple[fx.Node, ...]
    head: fx.Node | None
    logits: fx.Node
    answer: Answer
    depthwise: bool


def structure_of(graph: fx.GraphModule) -> NetworkStructure:
    """Find features, batch normalizations and head by operator and shape, never by name.

    Raises:
        RequestError: The network has no batch normalization over images, or no spatial features.
    """
    nodes = list(graph.graph.nodes)
    norms = tuple(n for n in nodes if n.target is aten.batch_norm.default and len(shape_of(n)) == 4)
    if not norms:
        raise RequestError(
            "the network has no BatchNorm2d layer, whose statistics replace the training data; "
            "use a network that was trained with batch normalization and not fused yet"
        )
    logits = logits_of(graph)
    ancestors = _ancestors(logits)
    spatial = [n for n in nodes if n in ancestors and n.op == "call_function" and _is_spatial(n)]
    if not spatial:
        raise RequestError(
            f"the network has no feature map [N, C, H, W] with at least {_LEAST_CELLS} cells before its logits; "
            "give a larger --input-size, or a convolutional network"
        )
    features = spatial[-1]
    head = _linear_head(logits, features)
    return NetworkStructure(features, norms, head, logits, answer_of(graph), is_depthwise(graph))


def _is_spatial(node: fx.Node) -> bool:
    shape = shape_of(node)
    return len(shape) == 4 and shape[2] * shape[3] >= _LEAST_CELLS


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [node]
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
