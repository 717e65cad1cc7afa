"""The frozen network as a teacher: one pass gives logits, features, attention and batch-norm moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.core.batchnorm import affine_and_moments, at_least_float, batch_norm_affine
from acq.core.interpreter import KeepingInterpreter, value_of
from acq.core.outputs import Output
from acq.core.processes import ALONE, Processes
from acq.core.values import Moments, TeacherOutput
from acq.core.whole_batch_norm import whole_batch_norm
from acq.errors import RequestError
from acq.network.attention import centre_of, channel_energy, class_activation
from acq.network.constants import constant
from acq.network.names import name_of
from acq.network.outputs import logits_from
from acq.network.structure import NetworkStructure, structure_of


class Teacher(nn.Module):
    """A frozen network that is never trained.

    Args:
        graph: From ``acq.network.trace.trace``.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.structure = structure_of(graph)

    @property
    def output(self) -> Output:
        """How its logits decide."""
        return self.structure.answer.output

    @property
    def features(self) -> str | None:
        """Public name of the node whose values are the last features with places; None without any."""
        found = self.structure.features
        return None if found is None else name_of(found.node)

    @property
    def stored_moments(self) -> tuple[Moments, ...]:
        """Running mean and variance of every batch normalization, in order of execution."""
        return tuple(self._running(norm) for norm in self.structure.norms)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, L] with running statistics."""
        return self.logits(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, L] with running statistics; a student has the same method."""
        return logits_from(self.graph, self.structure.logits, self.output, images)

    def read(
        self,
        images: Tensor,
        label: Tensor | None = None,
        *,
        batch_statistics: bool = False,
        moments: bool = False,
        mixed: bool = False,
        processes: Processes = ALONE,
    ) -> TeacherOutput:
        """One forward pass that keeps what training needs.

        Args:
            images: [N, C, H, W]; with several processes this process's rows of a batch.
            label: Answers [N] of the attention maps, of the whole batch; those of the largest scores where None. They
                matter only where the network answers for images as a whole.
            batch_statistics: Normalise by the batch's own moments, as BatchNorm2d does in training. No buffer changes.
            moments: Measure the moments of the inputs of batch normalizations.
            mixed: Compute the network's products in bfloat16; the output is float32 all the same.
            processes: Those that share the batch.

        Returns:
            The output for the whole batch.
        """
        reader = _Reader(
            self.graph, self.structure, processes, batch_statistics=batch_statistics, wants_moments=moments
        )
        with mixed_precision(images.device, mixed):
            reader.run(images)
        rows = self.output.flat([reader.kept[node] for node in self.structure.logits])
        count = len(images) if label is None else len(label)
        logits, found = processes.gather(at_least_float(rows), count), self.structure.features
        pooled = processes.pool_moments(reader.moments, len(images) / count)
        if found is None:
            nothing = logits.new_empty(count, 0)
            return TeacherOutput(logits, nothing, nothing.new_empty(count, 0, 0), nothing, pooled)
        features = processes.gather(at_least_float(reader.kept[found.node]), count)
        attention = self._attention(logits, found.as_map(features), label)
        return TeacherOutput(logits, features, attention, centre_of(attention), pooled)

    def first_moments(self, images: Tensor) -> Moments:
        """Moments of the input of the first batch normalization for images [N, C, H, W]; nothing behind it is computed.

        The network must have one.
        """
        source = self.structure.norms[0].args[0]
        assert isinstance(source, fx.Node)
        values = value_of(self.graph, self.graph.graph, source, images)
        var, mean = torch.var_mean(at_least_float(values), (0, 2, 3), correction=0)
        return Moments(mean, var)

    def answer_rows(self) -> Tensor | None:
        """The weights of each answer in the last layer: answers that are alike have similar rows.

        Returns:
            [A, C], where C counts all weights of a row; None where the logits come from no layer with a row per score,
            or images are not asked for one answer each.
        """
        weight, scores = constant(self.graph, self.structure.last_weight), self.output.whole
        return None if weight is None or scores is None else scores.head(weight.flatten(1))

    def _attention(self, logits: Tensor, features: Tensor, label: Tensor | None) -> Tensor:
        weight, scores = constant(self.graph, self.structure.head), self.output.whole
        if weight is None or scores is None:
            return channel_energy(features)
        answers = scores.answered(logits) if label is None else label
        return class_activation(features, scores.head(weight), answers)

    def _running(self, norm: fx.Node) -> Moments:
        mean, var = constant(self.graph, norm.args[3]), constant(self.graph, norm.args[4])
        if mean is None or var is None:
            raise RequestError(
                f"batch normalization {name_of(norm)!r} keeps no running statistics; "
                "use a network that was trained with track_running_stats=True"
            )
        return Moments(mean, var)


def mixed_precision(device: torch.device, enabled: bool) -> torch.autocast:
    """A context in which products are computed in bfloat16, if ``enabled``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


class _Reader(KeepingInterpreter):
    """One pass over the graph that keeps the features and measures moments."""

    def __init__(
        self,
        graph: fx.GraphModule,
        structure: NetworkStructure,
        processes: Processes,
        *,
        batch_statistics: bool,
        wants_moments: bool,
    ) -> None:
        features = () if structure.features is None else (structure.features.node,)
        super().__init__(graph, graph.graph, (*features, *structure.logits))
        self.norms = frozenset(structure.norms)
        self.processes = processes
        self.batch_statistics = batch_statistics
        self.wants_moments = wants_moments
        self.moments: list[Moments] = []

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._normalise(*args) if self.current in self.norms else super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        return super().run_node(n)

    def _normalise(self, *args: Any) -> Tensor:
        x, weight, bias, mean, var, _, momentum, eps, _ = args
        if self.wants_moments:
            normalised, found = affine_and_moments(x, *batch_norm_affine(weight, bias, mean, var, eps))
            self.moments.append(found)
            if not self.batch_statistics:
                return normalised
        if self.batch_statistics and self.processes.size > 1:
            return whole_batch_norm(x, weight, bias, eps)[0]
        if self.batch_statistics:
            return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
