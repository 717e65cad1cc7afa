"""How a traced network answers: the nodes of its logits, how they decide, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from acq.core.interpreter import KeepingInterpreter
from acq.core.outputs import Answer, Output
from acq.core.scores import Ending, Kind, Scores
from acq.core.structures import TENSOR, names_in
from acq.errors import RequestError
from acq.network.axes import COPIES, SHAPES, TURNS, channel_axes
from acq.network.constants import shape_of
from acq.network.heads import ENDINGS, joins_heads
from acq.network.names import name_of
from acq.network.returned import RETURNED, Returned
from acq.network.trace import aten

_LENGTHS = (aten.sqrt.default, aten.linalg_vector_norm.default)
_SIZES = (aten.abs.default, aten.pow.Tensor_Scalar, aten.mul.Tensor, aten.square.default)  # whose sum is a length
_EACH: tuple[Ending, ...] = ("sigmoid", "hardsigmoid")
_NORM_STEPS = 4  # at most, from a length to its square root: a clamp and an expansion lie between
_SHAPES: dict[Kind, str] = {
    "class": "[N, K]", "multilabel": "of any shape", "map": "[N, K, H, W]", "sequence": "[N, T, K]",
    "values": "of any shape",
}  # fmt: skip
_FITTING = "leave --output-kind out, or give another"
_BEFORE = "leave --output-kind out, or, in an ONNX file, name the value before the argmax as --outputs"
_TURNED = (
    "transpose the output in the network, name the value before its transpose as --outputs (ONNX files), or leave "
    "--output-kind out"
)


def answer_of(graph: fx.GraphModule) -> Answer:
    """What a traced network returns, and how it decides.

    Raises:
        RequestError: The kind that the user gave does not fit.
    """
    known, counted = _returned(graph), _counted(graph)
    names = names_in(known.structure)
    return Answer(
        known.structure,
        tuple(names[place] for place in known.places),
        tuple(name_of(logits) for logits, _ in counted),
        Output(tuple(scores for _, scores in counted)),
    )


def logits_of(graph: fx.GraphModule) -> tuple[fx.Node, ...]:
    """For each tensor that counts, the node whose values are its logits."""
    return tuple(logits for logits, _ in _counted(graph))


def logits_from(graph: fx.GraphModule, nodes: Sequence[fx.Node], output: Output, images: Tensor) -> Tensor:
    """The logits [N, L] of a traced network for normalised images [N, C, H, W].

    Args:
        graph: The network.
        nodes: As ``logits_of`` finds them.
        output: How they decide.
        images: Normalised.
    """
    interpreter = KeepingInterpreter(graph, graph.graph, nodes)
    interpreter.run(images)
    return output.flat([interpreter.kept[node] for node in nodes])


def returned_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes of the returned tensors in order."""
    returned: Any = graph.output_node().args[0]
    return tuple(returned)


@dataclass(frozen=True)
class End:
    """How a counted tensor comes about.

    Attributes:
        logits: The node of its logits: the tensor itself, or what enters the softmax or sigmoid that ends it.
        ending: That softmax or sigmoid, if there is one.
        axis: The axis over which a softmax competes; None without one.
        shape: Of the tensor, -1 where it depends on the number of images.
    """

    logits: fx.Node
    ending: Ending | None
    axis: int | None
    shape: tuple[int, ...]

    @property
    def says_each(self) -> bool:
        """Whether each number is the answer to a question of its own."""
        return self.ending in _EACH


def end_of(node: fx.Node) -> End:
    """How a returned tensor of a traced network or of a student comes about."""
    last = _before(node, SHAPES)
    shape, ending = _shape(node), ENDINGS.get(last.target)
    if ending is None or not isinstance(last.args[0], fx.Node):
        return End(node, None, None, shape)
    if ending in _EACH:
        return End(last.args[0], ending, None, shape)
    inner, axis = _shape(last), last.args[1]
    if not isinstance(axis, int) or axis % len(inner) == 0:
        return End(node, None, None, shape)  # it competes over the images
    axis %= len(inner)
    if inner != shape:  # the axis of the returned tensor that has as many classes
        alike = [place for place, size in enumerate(shape) if place and size == inner[axis]]
        if len(alike) != 1:
            return End(node, None, None, shape)
        axis = alike[0]
    return End(last.args[0], ending, axis, shape)


def _before(node: fx.Node, moves: Sequence[Any]) -> fx.Node:
    """What a tensor was before operators that only move its values."""
    while node.target in moves and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _names_nothing(node: fx.Node) -> bool:
    """Whether the values of a traced network's tensor name no classes.

    So it is behind a normalisation of vectors, as in embeddings, where heads that end differently are joined, as in
    detectors, and behind an argmax.
    """
    last = _before(node, SHAPES)
    return last.target not in ENDINGS and (_is_embedding(last) or joins_heads(node) or _argmax(node))


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["shape"]) if "shape" in node.meta else shape_of(node)


def _is_embedding(node: fx.Node) -> bool:
    """Whether a node divides vectors by their length, or normalises each of their numbers over the images."""
    if node.target is aten.batch_norm.default:
        return len(_shape(node)) == 2
    if node.target is not aten.div.Tensor or len(node.all_input_nodes) != 2:
        return False
    vector, length = node.all_input_nodes
    for _ in range(_NORM_STEPS):
        if length is vector or not length.all_input_nodes:
            break
        before = length.all_input_nodes[0]
        if length.target in _LENGTHS or (length.target is aten.sum.dim_IntList and before.target in _SIZES):
            return True
        length = before
    return False


def _argmax(node: fx.Node) -> bool:
    """Whether a tensor has the numbers of classes, perhaps as floats, instead of their scores."""
    return _before(node, (*SHAPES, *COPIES, *TURNS)).target is aten.argmax.default


def _returned(graph: fx.GraphModule) -> Returned:
    known: Returned = graph.meta.get(RETURNED, Returned(TENSOR, (0,), (None,)))
    return known


def _counted(graph: fx.GraphModule) -> list[tuple[fx.Node, Scores]]:
    """The node of the logits of each tensor that counts, and what they mean. Values are taken as they are returned."""
    known, nodes, found = _returned(graph), returned_nodes(graph.graph), []
    channels = channel_axes(graph.graph)
    for place, kind in zip(known.places, known.kinds, strict=True):
        end = end_of(nodes[place])
        if kind not in (None, "values") and _argmax(nodes[place]):
            raise RequestError(f"the network returns numbers of classes, no scores; {_BEFORE}")
        known_kind = kind or ("values" if _names_nothing(nodes[place]) else None)
        scores = _scores(end, known_kind, channels.get(nodes[place]))
        found.append((nodes[place] if scores.kind == "values" else end.logits, scores))
    return found


def _scores(end: End, kind: Kind | None, channels: int | None) -> Scores:
    """What the scores of a tensor mean: as the user says, or by shape, end, and the axis of the last layer's channels.

    Raises:
        RequestError: The kind that the user gave does not fit.
    """
    sides = end.shape[1:]
    whole = math.prod(sides[1:]) == 1
    found = kind or _kind(end, whole, channels)
    if found == "class" and whole and (not sides or sides[0] == 1):
        raise RequestError("one score per image names no class; leave --output-kind out, or give multilabel or values")
    if found == "multilabel" and end.ending is not None and not end.says_each:
        raise RequestError("the network ends in a softmax, so its classes exclude each other; leave --output-kind out")
    if found == "multilabel" or (found == "class" and whole):
        return Scores(found, (math.prod(sides),))
    wanted = {"class": 1, "sequence": 2}.get(found)
    if (wanted and len(sides) != wanted) or (found == "map" and whole) or (found == "sequence" and sides[-1] < 2):
        raise RequestError(f"scores of kind {found} are {_SHAPES[found]}, not {_text(sides)}; {_FITTING}")
    axis = _class_axis(end, channels) if found == "map" else end.axis
    if axis not in (None, {"map": 1, "sequence": 2}.get(found, axis)):
        raise RequestError(
            f"classes are on axis {axis} of {_text(sides)}, and scores of kind {found} are {_SHAPES[found]}; {_TURNED}"
        )
    return Scores(found, sides or (1,))


def _kind(end: End, whole: bool, channels: int | None) -> Kind:
    sides = end.shape[1:]
    if whole:
        return "multilabel" if sides[:1] in ((), (1,)) or end.says_each else "class"
    if end.axis == len(sides) and len(sides) == 2:
        return "sequence"
    if end.says_each and sides[0] > 1:
        return "multilabel"
    if end.axis is None and end.ending is None and len(sides) == 2:
        return "sequence"
    return "map" if _class_axis(end, channels) in (None, 1) else "values"  # elsewhere they are no map's classes


def _class_axis(end: End, channels: int | None) -> int | None:
    """The axis of the classes: that of the softmax, or of the last layer's channels; None where it is not known."""
    if end.says_each and end.shape[1] == 1:
        return None  # each number says yes or no
    return channels if end.axis is None else end.axis


def _text(sides: Sequence[int]) -> str:
    return f"[{', '.join(['N', *map(str, sides)])}]"
