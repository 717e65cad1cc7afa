"""A run in TensorBoard while it goes on: losses as scalars, images, and weights as histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.core.pixels import to_bytes
from acq.core.values import Record
from acq.errors import RequestError
from acq.training.few_images import FewImages
from acq.training.first_student import FirstStudent
from acq.training.images import ImageRefinement
from acq.training.loop import Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SHOWN = 16  # images
_TIMES = 10  # images and histograms are written so often per phase
_STUDENT_PHASES = ("calibration", "student", "conversion")


def require_tensorboard() -> type[SummaryWriter]:
    """The writer of TensorBoard files.

    Raises:
        RequestError: The extra ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise RequestError(f"TensorBoard needs {error.name}; pip install 'acquant[tensorboard]'") from None
    return SummaryWriter


@contextmanager
def board(folder: Path, training: Training) -> Iterator[Callable[[Record], None]]:
    """A watch that writes every record to ``folder``. The run itself does not change."""
    with require_tensorboard()(str(folder)) as writer:
        yield _Board(writer, training)


class _Board:
    def __init__(self, writer: SummaryWriter, training: Training) -> None:
        self.writer, self.training = writer, training

    def __call__(self, record: Record) -> None:
        for name, value in record.values.items():
            self.writer.add_scalar(f"{record.phase}/{name}", value, record.step)
        if record.step % max(1, record.steps // _TIMES) and record.step != record.steps:
            return
        images = self._images(record)
        if images is not None and images.shape[1] in (1, 3):
            shown = to_bytes(images, self.training.context.preprocessing)
            self.writer.add_images(f"{record.phase}/images", shown, record.step, dataformats="NHWC")
        if record.phase in _STUDENT_PHASES:
            self._histograms(record.step if record.phase == "student" else 0, record.phase)

    def _images(self, record: Record) -> Tensor | None:
        """The images that the phase works on, as they are now; None between two batches, and for the first student."""
        context, phase = self.training.context, self.training.phases[record.phase]
        if isinstance(phase, FirstStudent):
            return None
        if isinstance(phase, FewImages) or (isinstance(phase, ImageRefinement) and record.step < record.steps):
            return phase.preview(_SHOWN)
        if record.phase != "generator":
            return context.dataset.images[:_SHOWN]
        rng = torch.Generator(context.rng.device).manual_seed(0)  # leaves the run's own random state alone
        with evaluating(context.generator):
            images: Tensor = context.generator(context.conditions.draw(_SHOWN // 2, rng))
        return images

    def _histograms(self, step: int, phase: str) -> None:
        """Each layer's weights in quantization steps."""
        for name, layer in self.training.context.student.layers():
            steps = layer.weight / layer.weight_quantizer.scale.view(-1, *(1,) * (layer.weight.dim() - 1))
            self.writer.add_histogram(f"{phase}/{name} in quantization steps", steps.detach().cpu(), step)
