"""The operators that can be read; importing this package registers them."""

from acq.zoo.onnx.operators import (
    activations,
    arithmetic,
    attention,
    indexing,
    layers,
    norms,
    padding,
    pools,
    reductions,
    resizing,
    sequences,
    shapes,
)  # fmt: skip

__all__ = [
    "activations", "arithmetic", "attention", "indexing", "layers", "norms", "padding", "pools", "reductions",
    "resizing", "sequences", "shapes",
]  # fmt: skip
