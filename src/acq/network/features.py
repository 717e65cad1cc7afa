"""The last values of a network that have places: a feature map, or tokens on the grid of one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.network.constants import shape_of
from acq.network.trace import aten

_MAKERS = (
    aten.conv2d.default, aten.conv2d.padding, aten.convolution.default, aten.conv_transpose2d.input,
    aten.batch_norm.default,
)  # fmt: skip
_REARRANGE = (
    aten.flatten.using_ints, aten.unflatten.int, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.t.default,
)  # fmt: skip
_MIX = (aten.linear.default, aten.matmul.default, aten.bmm.default, aten.mm.default, aten.addmm.default)
_TOKENS = (aten.linear.default, aten.layer_norm.default)  # they compute each token by itself
_LEAST_CELLS = 4  # of features in which attention has a position
_MORE = 2  # tokens before those of the places, such as one for the class
_MAP, _SEQUENCE = 4, 3  # axes


@dataclass(frozen=True)
class Features:
    """The node whose values are features with places: a map [N, C, H, W], or tokens [N, T, C].

    Attributes:
        node: The node.
        grid: H and W. The last H * W tokens are the places.
    """

    node: fx.Node
    grid: tuple[int, int]

    @property
    def channels(self) -> int:
        """C."""
        shape = shape_of(self.node)
        return shape[1] if len(shape) == _MAP else shape[-1]

    def as_map(self, values: Tensor) -> Tensor:
        """The node's values as a map [N, C, H, W]."""
        if values.dim() == _MAP:
            return values
        return values[:, -math.prod(self.grid) :].transpose(1, 2).reshape(len(values), -1, *self.grid)


def pooled(features: Tensor) -> Tensor:
    """The mean over places of maps [N, C, H, W] or tokens [N, T, C]: [N, C]."""
    return features.mean((2, 3)) if features.dim() == _MAP else features.mean(1)


def features_of(nodes: Iterable[fx.Node], before: Collection[fx.Node]) -> Features | None:
    """The last features among the nodes ``before`` the logits; None where the network has none.

    Args:
        nodes: All nodes of a traced network in order of execution.
        before: Those that the logits are computed from.
    """
    found, order = None, list(nodes)
    maps = _maps(order)
    grids = {**maps, **_tokens(order, maps)}
    for node in order:
        grid = grids.get(node)
        if grid is not None and node in before and math.prod(grid) >= _LEAST_CELLS:
            found = Features(node, grid)
    return found


def _maps(nodes: list[fx.Node]) -> dict[fx.Node, tuple[int, int]]:
    """The height and width of every node that is a map of features.

    A convolution or a batch norm makes a map, and an operator on a map keeps it. An operator that rearranges or mixes
    places, such as a reshape, gives a map again only if height and width are those of before. So a channel shuffle is
    a map, and attention heads [N, heads, places, d] are none.
    """
    maps: dict[fx.Node, tuple[int, int]] = {}
    rearranged: dict[fx.Node, tuple[int, int]] = {}
    for node in nodes:
        if node.op != "call_function":
            continue
        shape = shape_of(node)
        places = [maps[source] for source in node.all_input_nodes if source in maps]
        if len(shape) == _MAP and (node.target in _MAKERS or (places and node.target not in (*_REARRANGE, *_MIX))):
            maps[node] = (shape[2], shape[3])
        elif node.target in _REARRANGE:
            places += [rearranged[source] for source in node.all_input_nodes if source in rearranged]
            if len(shape) == _MAP and shape[2:] in places:
                maps[node] = (shape[2], shape[3])
            elif places:
                rearranged[node] = places[0]
    return maps


def _tokens(nodes: list[fx.Node], maps: dict[fx.Node, tuple[int, int]]) -> dict[fx.Node, tuple[int, int]]:
    """The grid of every node that has tokens [N, T, C] in the order of a map's places, perhaps with more in front.

    A linear layer or a layer norm behind the map makes tokens, and an operator that neither rearranges nor mixes them
    keeps them. Their grid is that of the last map before them.
    """
    tokens: dict[fx.Node, tuple[int, int]] = {}
    grids: dict[fx.Node, tuple[int, int]] = {}  # of the last map before each node
    batch = next((node.meta["val"].shape[0] for node in nodes if node.op == "placeholder"), None)
    for node in nodes:
        sources = node.all_input_nodes
        before = [grids[source] for source in sources if source in grids]
        if node in maps:
            grids[node] = maps[node]
        elif before:
            grids[node] = before[-1]
        value = node.meta.get("val")
        if node in maps or not before or not isinstance(value, Tensor) or value.dim() != _SEQUENCE:
            continue
        keeps = node.target not in (*_REARRANGE, *_MIX) and any(source in tokens for source in sources)
        fits = 0 <= value.shape[1] - math.prod(grids[node]) <= _MORE
        if fits and _same(value.shape[0], batch) and (node.target in _TOKENS or keeps):
            tokens[node] = grids[node]
    return tokens


def _same(size: object, batch: object) -> bool:
    """Whether a size is that of the batch, which is a symbol."""
    return isinstance(size, torch.SymInt) and isinstance(batch, torch.SymInt) and size.node.expr == batch.node.expr
