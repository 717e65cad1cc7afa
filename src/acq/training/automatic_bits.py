"""Automatic bits: each layer gets a width of its own, from what its quantization costs on procedural scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.quantization.allocation import allocate, costs
from acq.quantization.build import build
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import Placement
from acq.quantization.plan import plan
from acq.quantization.roles import LayerWidth
from acq.synthesis.scenes import normalised_scenes

_BATCH, _PIXELS = 8, 1 << 17  # scenes per forward pass, and pixels of all scenes together


def automatic_bits(
    graph: fx.GraphModule,
    preprocessing: Preprocessing,
    format: NumberFormat,
    placement: Placement,
    layers: Mapping[str, LayerWidth],
    budget: float,
) -> dict[str, LayerWidth]:
    """Choose the bits of every layer that no other setting decides.

    Args:
        graph: The traced network.
        preprocessing: Of its images.
        format: The bit-widths; its weight width is where layers are compared.
        placement: Of the quantizers.
        layers: Bits of layers that the user decided.
        budget: Mean bits of the chosen layers' weights.

    Returns:
        Bits by layer, those of ``layers`` included.

    Raises:
        RequestError: No layer is left to choose bits for.
    """
    layout = plan(graph, format, placement, layers)
    other = plan(graph, replace(format, weight=2), placement, layers)
    pairs = zip(layout.nodes, other.nodes, strict=True)
    free = {node.name for node, changed in pairs if node.weight_bits != changed.weight_bits}
    if not free and not layers:
        raise RequestError(
            "bits are auto, but every layer has bits by first_last_bits; give --first-last-bits same, or bits"
        )
    _, height, width = preprocessing.input_size
    count = max(_BATCH, _PIXELS // (height * width))
    images = normalised_scenes(count, preprocessing, torch.Generator().manual_seed(0))
    # on the CPU, where the scenes are
    found = costs(build(graph, layout).cpu(), torch.split(images, _BATCH), free)
    return {**allocate(found, budget), **layers}
