"""The values that flow between the parts. Contracts only: no logic, no state.

Shapes: N images, C channels, H x W pixels, K classes, Z noise values. Images are normalised float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from acq.core.outputs import Output


@dataclass(frozen=True)
class Framing:
    """How a picture of another size than the network's becomes one of its size: resized, then cropped to its centre.

    Attributes:
        resize: Pixels of the shorter side before the crop.
        interpolation: ``bilinear`` or ``bicubic``, with antialias, as Pillow computes them.
    """

    resize: int
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Preprocessing:
    """How pixels in [0, 1] become network input: ``(pixels - mean) / std``, one mean and one std per channel.

    Attributes:
        input_size: Channels, height and width.
        mean: One value per channel.
        std: One value per channel, above 0.
        framing: Of pictures that have another size; None if it is not known.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    framing: Framing | None = None


@dataclass(frozen=True)
class Condition:
    """What the generator is asked for.

    Attributes:
        noise: [N, Z].
        label: What each image is asked for: an answer of ``acq.core.outputs.Output`` such as a class, [N]; or the
            answers of all places, [N, Q].
        centre: The attention centre (x, y) of each image, in [-1, 1], [N, 2].
    """

    noise: Tensor
    label: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of a batch normalization's input, one value per channel: [C], [C]."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher computes for a batch of images.

    Attributes:
        logits: [N, K].
        features: The last features with places: a map [N, C, H, W], or tokens [N, T, C]; [N, 0] without any.
        attention: A map per image that sums to one, [N, H, W]; [N, 0, 0] without features.
        centre: The mass-weighted mean coordinate of the attention, [N, 2]; [N, 0] without features.
        moments: One entry per batch normalization in order of execution; empty when not asked for.
    """

    logits: Tensor
    features: Tensor
    attention: Tensor
    centre: Tensor
    moments: tuple[Moments, ...]


@dataclass(frozen=True)
class GeneratorBatch:
    """Images with their condition and the teacher's outputs: the input of every loss of ``acq.synthesis.losses``.

    The batch consists of pairs. Images ``i`` and ``i + N/2`` share label and centre and differ in noise.

    Attributes:
        condition: What was requested.
        images: [N, C, H, W].
        eval_output: The teacher's output with running statistics.
        train_output: The teacher's output with batch statistics; None when no loss needs it.
        stored_moments: The running statistics, one entry per batch normalization.
        output: How the teacher's logits decide.
        preprocessing: How the images are normalised.
    """

    condition: Condition
    images: Tensor
    eval_output: TeacherOutput
    train_output: TeacherOutput | None
    stored_moments: tuple[Moments, ...]
    output: Output
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Record:
    """Progress of a run after one step.

    Attributes:
        phase: Name of the phase.
        step: Steps done in this phase.
        steps: Steps of this phase.
        seconds: Seconds since the run began, pauses left out.
        values: Losses by name; empty on most steps, because reading a number makes an accelerator wait.
    """

    phase: str
    step: int
    steps: int
    seconds: float
    values: dict[str, float]
