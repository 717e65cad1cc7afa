"""A student without training: ranges of all quantizers, equalization of channels, and layer-wise rounding."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize
from acq.quantization.rounding import images_that_fit, round_layers
from acq.quantization.student import Student

_BATCH = 64  # images per forward pass


def fit_untrained(
    student: Student, images: Tensor, *, equalized: bool, rounded: bool, keep: Collection[str | None] = ()
) -> None:
    """Make a student work in low bits on images, in closed form.

    Args:
        student: Its ranges are set, and its weights change unless both options are off.
        images: Normalised, [N, C, H, W].
        equalized: Whether the channels of low-bit layer inputs are rescaled.
        rounded: Whether weights are rounded layer by layer.
        keep: Names of tensors whose channels are not rescaled; None is no tensor.
    """
    batches = images.split(_BATCH)  # type: ignore[no-untyped-call]
    calibrate(student, batches)
    if equalized and equalize(student, batches, keep=keep):
        calibrate(student, batches)
    if rounded:
        fitting = images[: images_that_fit(student)]
        round_layers(student, fitting.split(_BATCH))  # type: ignore[no-untyped-call]
