"""The values that flow between the parts. Contracts only: no logic, no state.

Shapes: N images, C channels, H x W pixels, K classes, Z noise values. Images are normalised, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How pixels in [0, 1] become what the network takes: ``(pixels - mean) / std``, one value a channel."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Condition:
    """What the generator is asked for: noise [N, Z], label [N] and attention centre (x, y) in [-1, 1] [N, 2]."""

    noise: Tensor
    label: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of a batch-normalization layer's input, one value a channel: [C], [C]."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher made of a batch of images.

    ``features`` [N, C, H, W] are its last spatial ones, ``attention`` [N, H, W] sums to one an image, ``centre``
    [N, 2] is the attention's mass-weighted mean coordinate and ``moments`` has one entry a batch-normalization
    layer, in order of execution (empty when not asked for).
    """

    logits: Tensor
    features: Tensor
    attention: Tensor
    centre: Tensor
    moments: tuple[Moments, ...]


@dataclass(frozen=True)
class GeneratorBatch:
    """One generator step, each forward pass done once: what was asked, what was made and how the teacher read it.

    The batch is made of pairs: images ``i`` and ``i + N/2`` share label and centre and differ in noise.
    ``eval_output`` is the reading with running statistics, ``train_output`` the one with batch statistics (absent when
    nothing needs it) and ``stored_moments`` are the running statistics themselves.
    """

    condition: Condition
    images: Tensor
    eval_output: TeacherOutput
    train_output: TeacherOutput | None
    stored_moments: tuple[Moments, ...]


@dataclass(frozen=True)
class Record:
    """What a run says about itself at one moment: the phase, how far it is, and named figures."""

    phase: str
    step: int
    steps: int
    seconds: float
    values: dict[str, float]
