"""Read a frozen network: logits, last spatial features, attention and batch-normalization moments in one pass."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.core.batchnorm import affine_and_moments, at_least_float, batch_norm_affine
from acq.core.processes import ALONE, Processes, whole_batch_norm
from acq.core.values import Moments, TeacherOutput
from acq.errors import RequestError
from acq.network.attention import centre_of, channel_energy, class_activation
from acq.network.trace import aten, classes_of, constant, logits_of, shape_of

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)
RESHAPES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.split.Tensor, operator.getitem,
)  # fmt: skip


@dataclass(frozen=True)
class NetworkStructure:
    """What the graph says of a network: its nodes of interest and what its head is made of.

    ``head`` is the name of the weight [K, C] that turns pooled features into logits, or None when something else
    stands between the last spatial features and the logits.
    """

    features: str
    norms: tuple[str, ...]
    head: fx.Node | None
    classes: int


def structure(graph: fx.GraphModule) -> NetworkStructure:
    """Find features, batch normalizations and head by operator and shape, never by name.

    Raises:
        RequestError: there is no batch normalization over images or there are no spatial features.
    """
    nodes = list(graph.graph.nodes)
    norms = [n for n in nodes if n.target is aten.batch_norm.default and len(shape_of(n)) == 4]
    if not norms:
        raise RequestError(
            "the network has no BatchNorm2d layer: data-free training reads the data's statistics from there; "
            "use a network that was trained with batch normalization (and not yet fused)"
        )
    logits = logits_of(graph)
    behind = _ancestors(logits)
    spatial = [n for n in nodes if n in behind and n.op == "call_function" and _is_spatial(n)]
    if not spatial:
        raise RequestError(
            "the network has no spatial features [N, C, H, W] with H x W of at least 4 before its scores: "
            "give a larger --input-size, or a convolutional network"
        )
    features = spatial[-1]
    return NetworkStructure(
        features=features.name,
        norms=tuple(n.name for n in norms),
        head=_linear_head(logits, features),
        classes=classes_of(graph),
    )


class Teacher(nn.Module):
    """A frozen network that is read, never trained: the graph of :func:`acq.network.trace.trace` and what is in it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.structure = structure(graph)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.structure.classes

    @property
    def stored_moments(self) -> tuple[Moments, ...]:
        """Running mean and variance of every batch normalization, in the order of a reading's moments."""
        nodes = {n.name: n for n in self.graph.graph.nodes}
        return tuple(self._running(nodes[name]) for name in self.structure.norms)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] with running statistics."""
        logits: Tensor = self.graph(images)
        return logits

    def read(
        self,
        images: Tensor,
        label: Tensor | None = None,
        *,
        batch_statistics: bool = False,
        moments: bool = False,
        mixed: bool = False,
        team: Processes = ALONE,
    ) -> TeacherOutput:
        """Read ``images`` [N, C, H, W]; attention is that of ``label`` [N], or of the predicted class without one.

        ``batch_statistics`` normalises images by the batch's own moments, as BatchNorm2d does in training, and
        changes no buffer. ``mixed`` takes the network's products in bfloat16; what is read is in 32 bits all the same.
        In a ``team`` images are this process's share of a batch; ``label`` and what is read are of the whole of it.
        """
        reader = _Reader(self.graph, self.structure, team, batch_statistics=batch_statistics, moments=moments)
        with mixed_precision(images.device, mixed):
            found: Tensor = reader.run(images)
        count = len(images) if label is None else len(label)
        logits, features = (team.gather(at_least_float(rows), count) for rows in (found, reader.features))
        if self.structure.head is None:
            attention = channel_energy(features)
        else:
            weight = constant(self.graph, self.structure.head)
            assert weight is not None
            attention = class_activation(features, weight, logits.argmax(1) if label is None else label)
        return TeacherOutput(
            logits, features, attention, centre_of(attention), team.pool(reader.moments, len(images) / count)
        )

    def _running(self, norm: fx.Node) -> Moments:
        mean, var = constant(self.graph, norm.args[3]), constant(self.graph, norm.args[4])
        if mean is None or var is None:
            raise RequestError(f"batch normalization {norm.name!r} keeps no running statistics to learn from")
        return Moments(mean, var)


def mixed_precision(device: torch.device, enabled: bool) -> torch.autocast:
    """Products in bfloat16 for a while, or nothing changed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


class _Reader(fx.Interpreter):
    """One pass over the graph that keeps the values asked for; made anew for each reading, so nothing lingers."""

    def __init__(
        self,
        graph: fx.GraphModule,
        structure: NetworkStructure,
        team: Processes,
        *,
        batch_statistics: bool,
        moments: bool,
    ) -> None:
        super().__init__(graph)
        self.team = team
        self.structure = structure
        self.norms = frozenset(structure.norms)
        self.batch_statistics = batch_statistics
        self.wants_moments = moments
        self.moments: list[Moments] = []
        self.features: Tensor

    def run_node(self, n: fx.Node) -> Any:
        value = self._normalise(n) if n.name in self.norms else super().run_node(n)
        if n.name == self.structure.features:
            self.features = value
        return value

    def _normalise(self, n: fx.Node) -> Tensor:
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, weight, bias, mean, var, _, momentum, eps, _ = args
        if self.wants_moments:
            normalised, found = affine_and_moments(x, *batch_norm_affine(weight, bias, mean, var, eps))
            self.moments.append(found)
            if not self.batch_statistics:
                return normalised
        if self.batch_statistics and self.team.size > 1:
            return whole_batch_norm(x, weight, bias, eps)[0]
        if self.batch_statistics:
            return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)


def _is_spatial(node: fx.Node) -> bool:
    shape = shape_of(node)
    return len(shape) == 4 and shape[2] * shape[3] >= 4


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _linear_head(logits: fx.Node, features: fx.Node) -> fx.Node | None:
    """The weight of the head if it is pool + linear: walk back from the logits to the features."""
    if logits.target is not aten.linear.default:
        return None
    pooled = False
    node, weight = logits.args[0], logits.args[1]
    while isinstance(node, fx.Node) and node is not features:
        if node.target in POOLS:
            pooled = shape_of(node)[1:2] == shape_of(features)[1:2]  # over space, and not over channels
        elif node.target not in RESHAPES:
            return None
        node = node.args[0]
    one_to_one = node is features and shape_of(features)[1] == shape_of(weight)[1]  # type: ignore[arg-type]
    return weight if pooled and one_to_one and isinstance(weight, fx.Node) else None
