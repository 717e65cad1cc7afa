"""The placement of a network whose settings leave it open."""

from __future__ import annotations

from typing import Literal

from torch import fx

from acq.network.operators import LAYER_NORM, MATRIX_PRODUCTS, operator_of
from acq.quantization.node_plan import Placement

PlacementSetting = Literal["auto", Placement]
_DECIDING = MATRIX_PRODUCTS | {LAYER_NORM}


def placement_of(graph: fx.GraphModule, setting: PlacementSetting) -> Placement:
    """The placement of a network.

    Transformers and ConvNeXt get ``layers``: their sums and norms hold channels of very different sizes, which one
    grid per tensor does not fit, and integers save no time there. Other networks get ``deployable``.

    Args:
        graph: The traced network.
        setting: A placement, or ``auto``, which decides by matrix products of two computed operands and layer norms.
    """
    if setting != "auto":
        return setting
    found = any(node.op == "call_function" and operator_of(node) in _DECIDING for node in graph.graph.nodes)
    return "layers" if found else "deployable"
