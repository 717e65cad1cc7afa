"""How a traced network answers: the node of its logits, how they decide, and what it returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from acq.core.interpreter import KeepingInterpreter
from acq.core.outputs import Answer, Ending, Kind, Output
from acq.core.structures import TENSOR, names_in
from acq.errors import RequestError
from acq.network.constants import shape_of
from acq.network.names import name_of
from acq.network.returned import RETURNED, Returned
from acq.network.trace import aten

_ENDINGS: dict[Any, Ending] = {
    aten.sigmoid.default: "sigmoid",
    aten.softmax.int: "softmax",
    aten._softmax.default: "softmax",
    aten.log_softmax.int: "log_softmax",
    aten._log_softmax.default: "log_softmax",
}
SHAPES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default, aten.unsqueeze.default,
)  # fmt: skip


def answer_of(graph: fx.GraphModule) -> Answer:
    """What a traced network returns, and how it decides.

    Raises:
        RequestError: The kind that the user gave does not fit.
    """
    known = _returned(graph)
    ending, logits, size = _end(graph)
    output = _output(size, ending, known.kind)
    return Answer(known.structure, names_in(known.structure)[known.place], name_of(logits), output)


def logits_of(graph: fx.GraphModule) -> fx.Node:
    """The node whose values are the logits, [N, K] or as ``Output.flat`` takes them."""
    return _end(graph)[1]


def logits_from(graph: fx.GraphModule, images: Tensor) -> Tensor:
    """The logits [N, K] of a traced network for normalised images [N, C, H, W]."""
    node = logits_of(graph)
    interpreter = KeepingInterpreter(graph, graph.graph, (node,))
    interpreter.run(images)
    return answer_of(graph).output.flat(interpreter.kept[node])


def returned_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes of the returned tensors in order."""
    returned: Any = graph.output_node().args[0]
    return tuple(returned)


def ending_of(node: fx.Node, size: int) -> tuple[Ending | None, fx.Node]:
    """The softmax or sigmoid that ends a network, and the node of its logits; the node itself where there is none.

    Args:
        node: A returned tensor.
        size: Its numbers per image.
    """
    last = node
    while last.target in SHAPES and isinstance(last.args[0], fx.Node):
        last = last.args[0]
    ending = _ENDINGS.get(last.target)
    if ending is None or not isinstance(last.args[0], fx.Node):
        return None, node
    if ending != "sigmoid":
        shape, axis = last.meta["shape"] if "shape" in last.meta else shape_of(last), last.args[1]
        if not isinstance(axis, int) or axis % len(shape) == 0 or shape[axis] != size:
            return None, node  # it competes over something else than the classes
    return ending, last.args[0]


def _returned(graph: fx.GraphModule) -> Returned:
    known: Returned = graph.meta.get(RETURNED, Returned(TENSOR, 0, None))
    return known


def _end(graph: fx.GraphModule) -> tuple[Ending | None, fx.Node, int]:
    """The softmax or sigmoid behind the logits, the node of the logits, and their numbers per image."""
    counted = returned_nodes(graph.graph)[_returned(graph).place]
    shape = shape_of(counted)
    size = shape[1] if len(shape) > 1 else 1
    return *ending_of(counted, size), size


def _output(size: int, ending: Ending | None, kind: Kind | None) -> Output:
    found: Kind = "multilabel" if size == 1 or ending == "sigmoid" else "class"
    if kind == "class" and size == 1:
        raise RequestError("one score per image names no class; leave --output-kind out, or give multilabel")
    if kind == "multilabel" and ending not in (None, "sigmoid"):
        raise RequestError("the network ends in a softmax, so its classes exclude each other; leave --output-kind out")
    return Output(kind or found, size)
