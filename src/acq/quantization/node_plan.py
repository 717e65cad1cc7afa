"""The plan of a student: what each node of a traced network becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from acq.network.operators import FLOAT_BY_DESIGN, ROLES, Role
from acq.quantization.formats import REDUCED_BITS, NumberFormat

Placement = Literal["deployable", "layers", "relu-only"]


@dataclass(frozen=True)
class NodePlan:
    """What becomes of one node.

    Attributes:
        name: The node's public name (``acq.network.names``).
        operator: Its operator, such as ``aten.relu.default``.
        role: Its role.
        weight_bits: Bits of its weights; None where it has none.
        output_bits: Bits of the quantizer of its output; None where it has none.
        shape: Its shape; -1 stands for the batch size.
        note: Why, in words.
        floating: Whether an engine computes it in floating point.
        requantize_for: Consumers that multiply its values. For them the values, which are stored in more bits, are
            requantized to the activations' bits.
        reduced_range: Whether 8-bit weights use the range of 7 bits only.
    """

    name: str
    operator: str
    role: Role
    weight_bits: int | None
    output_bits: int | None
    shape: tuple[int, ...]
    note: str
    floating: bool = False
    requantize_for: tuple[str, ...] = ()
    reduced_range: bool = False

    @property
    def is_missed(self) -> bool:
        """Whether a node in floating point has an operator that is not known, or weights that are kept there."""
        known = self.operator in FLOAT_BY_DESIGN or self.operator in ROLES
        return self.floating and (not known or ROLES.get(self.operator) in (Role.CONVOLUTION, Role.LINEAR))

    @property
    def weight_range_bits(self) -> int | None:
        """Bits of the weights' quantizer: 7 for 8-bit weights with a reduced range, otherwise ``weight_bits``."""
        return REDUCED_BITS if self.reduced_range else self.weight_bits

    @property
    def weights(self) -> str:
        """The weights' bits in words, such as ``4`` or ``8 (7-bit range)``; empty where there are none."""
        if self.weight_bits is None:
            return ""
        return (
            f"{self.weight_bits} ({self.weight_range_bits}-bit range)" if self.reduced_range else f"{self.weight_bits}"
        )


@dataclass(frozen=True)
class Plan:
    """The plan of a student. Printing it gives a table.

    Attributes:
        format: The number format.
        placement: Where quantizers are placed.
        nodes: One entry per node, in order of execution.
    """

    format: NumberFormat
    placement: Placement
    nodes: tuple[NodePlan, ...]

    @property
    def float_nodes(self) -> tuple[NodePlan, ...]:
        """The nodes that an engine computes in floating point; each has a note that says why."""
        return tuple(node for node in self.nodes if node.floating)

    @property
    def missed_nodes(self) -> tuple[NodePlan, ...]:
        """Those of ``float_nodes`` that the placement would have on integers, or whose operator is not known.

        The ``layers`` placement leaves all operators between layers in floating point on purpose.
        """
        if self.placement != "layers":
            return self.float_nodes
        return tuple(node for node in self.float_nodes if node.is_missed)

    @property
    def least_bits(self) -> int | None:
        """The fewest bits of a layer's weights or of activations; None where activations are floats."""
        if self.format.activation is None:
            return None
        return min([self.format.activation, *(node.weight_bits for node in self.nodes if node.weight_bits is not None)])

    def rows(self) -> list[dict[str, Any]]:
        """The nodes as dictionaries of JSON values; ``weights`` is the text of the printed table."""
        return [
            {**asdict(node), "shape": [*node.shape], "requantize_for": [*node.requantize_for], "weights": node.weights}
            for node in self.nodes
        ]

    def __str__(self) -> str:
        return self.table()

    def table(self, files: Mapping[str, str] = MappingProxyType({})) -> str:
        """The plan as a table; ``files`` adds a column: how a file computes each node, by its name."""
        head = ("node", "operator", "role", "weights", "output", "shape", *(["file"] if files else []), "note")
        cells = ((_cells(node), [files.get(node.name, "")] if files else []) for node in self.nodes)
        rows = [head, *((*left, *file, note) for (*left, note), file in cells)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cells(node: NodePlan) -> tuple[str, ...]:
    shape = "x".join("N" if size == -1 else str(size) for size in node.shape)
    output = str(node.output_bits) if node.output_bits else "float" if node.floating else ""
    return node.name, node.operator.removeprefix("aten."), node.role, node.weights, output, shape, node.note
