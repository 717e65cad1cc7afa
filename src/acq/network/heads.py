"""Whether a network returns heads joined to one tensor, of which some end in a softmax or sigmoid, as detectors do."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from acq.core.scores import Ending
from acq.network.axes import COPIES, axis_before
from acq.network.constants import shape_of
from acq.network.operators import ROLES, Role, operator_of
from acq.network.trace import aten

ENDINGS: dict[Any, Ending] = {
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.softmax.int: "softmax",
    aten._softmax.default: "softmax",
    aten.log_softmax.int: "log_softmax",
    aten._log_softmax.default: "log_softmax",
}
_SPLITS = (aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default)
_JOINS = (aten.cat.default, aten.concat.default)
_MORE_MOVES = (*COPIES, aten.gather.default, aten.topk.default)
_ALL = 1 << 31  # the end of a slice that takes the whole axis
_Taken = dict[int, range]  # the indices of a value that are returned, by axis; of other axes all are
_Part = tuple[fx.Node, _Taken]


def joins_heads(node: fx.Node) -> bool:
    """Whether a value joins parts of which some end in a softmax or sigmoid and others do not, or in another.

    Parts may be joined more than once, and moved between: detectors join the heads of a level, then the levels.
    """
    endings, seen, waiting = set[Ending | None](), set[Any](), [(node, _Taken())]
    while waiting and len(endings) < 2:
        current, taken = waiting.pop()
        key = (current, tuple(sorted(taken.items())))
        if key in seen:
            continue
        seen.add(key)
        parts = _parts(current, taken) if current.op == "call_function" else None
        if parts is None:
            endings.add(ENDINGS.get(current.target))
        else:
            waiting += parts
    return len(endings) > 1


def _parts(node: fx.Node, taken: _Taken) -> list[_Part] | None:
    """What a value is made of, if its operator moves or joins values."""
    given: Any = node.args
    if node.target in _JOINS:
        return _joined(node, taken)
    if node.target is aten.stack.default:
        return [(part, {}) for part in given[0]]
    if node.target is aten.slice_scatter.default:
        return _replaced(node, taken)
    if node.target is aten.copy.default:
        return [(given[1], taken)]
    if node.target is operator.getitem:
        return _item(given[0], given[1], taken)
    if node.target not in _MORE_MOVES and ROLES.get(operator_of(node)) != Role.MOVE:
        return None
    before = {axis_before(node, axis): indices for axis, indices in taken.items()}
    known = {axis: indices for axis, indices in before.items() if axis is not None}
    if node.target in (aten.slice.Tensor, aten.select.int):
        axis, indices = _sliced(node)
        known = _within(known, axis, indices)
    return [(given[0], known)]


def _joined(node: fx.Node, taken: _Taken) -> list[_Part]:
    """The parts of a concatenation of which something is taken."""
    given: Any = node.args
    rank, start, found = len(shape_of(node)), 0, list[_Part]()
    axis = (*given, 0)[1] % rank
    for part in given[0]:
        if len(shape_of(part)) != rank:
            continue  # an empty tensor, which fits any other
        size = shape_of(part)[axis]
        if axis not in taken:
            found.append((part, taken))
        elif own := _common(taken[axis], range(start, start + size)):
            found.append((part, {**taken, axis: range(own.start - start, own.stop - start, own.step)}))
        start += size
    return found


def _replaced(node: fx.Node, taken: _Taken) -> list[_Part]:
    """What a slice was written into, and the slice, as far as something of them is taken."""
    given: Any = node.args
    _, (start, end, step) = _bounds(node, 2)
    if not start and step == 1 and (end is None or (isinstance(end, int) and end >= _ALL)):
        return [(given[1], taken)]
    axis, indices = _sliced(node, 2)
    if indices is None or axis not in taken:
        return [(given[0], taken), (given[1], {})]
    common = len(_common(taken[axis], indices))
    whole = [(given[0], taken)] if common < len(taken[axis]) else []
    return [*whole, (given[1], {})] if common else whole


def _item(source: fx.Node, place: int, taken: _Taken) -> list[_Part] | None:
    """The part of a value that a split gives, or what else gives several tensors of which the first is values."""
    given: Any = source.args
    if source.target in _SPLITS:
        values: Any = source.meta["val"]
        axis = (*given, 0)[2] % values[0].dim()
        sizes = [value.shape[axis] for value in values[: place + 1]]
        fixed = all(isinstance(size, int) for size in sizes)
        return [(given[0], _within(taken, axis, range(sum(sizes[:-1]), sum(sizes)) if fixed else None))]
    if source.target is aten.unbind.int:
        return [(given[0], {})]
    moves = source.target in _MORE_MOVES or ROLES.get(operator_of(source)) == Role.MOVE
    return [(given[0], {})] if moves and place == 0 else None


def _sliced(node: fx.Node, place: int = 1) -> tuple[int, range | None]:
    """The axis of a slice or selection, and the indices that it takes; None where they are not fixed.

    Args:
        node: The operator.
        place: Of the axis among its arguments.
    """
    whole: Any = shape_of(node.args[0])  # type: ignore[arg-type]
    axis, bounds = _bounds(node, place)
    axis %= len(whole)
    if whole[axis] < 0 or any(isinstance(bound, fx.Node) for bound in bounds):
        return axis, None
    if node.target is aten.select.int:
        return axis, range(whole[axis])[bounds[0] :][:1]
    return axis, range(whole[axis])[slice(*bounds)]


def _bounds(node: fx.Node, place: int) -> tuple[int, list[Any]]:
    """The axis and start, end and step of a slice, as written; of a selection the axis and its index first."""
    axis, *bounds = (*node.args, *(0, None, None, 1)[max(len(node.args) - place, 0) :])[place:]
    return axis, bounds  # type: ignore[return-value]


def _within(taken: _Taken, axis: int, indices: range | None) -> _Taken:
    """What is taken of a value, where these indices of it were taken first."""
    if indices is None:
        return {other: kept for other, kept in taken.items() if other != axis}
    inner = taken.get(axis)
    return {**taken, axis: indices if inner is None else indices[inner.start : inner.stop : inner.step]}


def _common(taken: range, part: range) -> range:
    """Those indices taken that lie in a part without gaps between its first and its last."""
    inside = [index for index in taken if part.start <= index < part.stop]
    return range(inside[0], inside[-1] + 1, taken.step) if inside else range(0)
