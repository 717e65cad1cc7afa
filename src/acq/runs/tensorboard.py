"""A run in TensorBoard while it goes on: losses as scalars, images as they stand, weights as histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.core.values import Record
from acq.errors import RequestError
from acq.files.images import to_bytes
from acq.synthesis.condition import draw
from acq.training.trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SHOWN = 16
_TIMES = 10  # images and histograms are written so often in a phase


def require() -> type[SummaryWriter]:
    """What writes the files; RequestError where the extra ``tensorboard`` is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise RequestError(f"TensorBoard's {error.name} is missing; pip install 'acq[tensorboard]' has it") from None
    return SummaryWriter


@contextmanager
def board(folder: Path, trainer: Trainer) -> Iterator[Callable[[Record], None]]:
    """A function that writes every record of ``trainer``'s run to ``folder``; the run itself is left as it is."""
    with require()(str(folder)) as writer:
        yield _Board(writer, trainer)


class _Board:
    def __init__(self, writer: SummaryWriter, trainer: Trainer) -> None:
        self.writer = writer
        self.trainer = trainer

    def __call__(self, record: Record) -> None:
        for name, value in record.values.items():
            self.writer.add_scalar(f"{record.phase}/{name}", value, record.step)
        if record.step % max(1, record.steps // _TIMES) and record.step != record.steps:
            return
        images = self._images(record.phase)
        if images is not None:
            shown = to_bytes(images, self.trainer.preprocessing)
            if shown.shape[3] in (1, 3):
                self.writer.add_images(f"{record.phase}/images", shown, record.step, dataformats="NHWC")
        if record.phase in ("calibration", "student", "freezing"):
            self._histograms(record.step if record.phase == "student" else 0, record.phase)

    def _images(self, phase: str) -> Tensor | None:
        """What the phase works on, as it stands; the generator is asked with noise of this page's own."""
        trainer = self.trainer
        if phase == "generator":
            plan, own = trainer.generator_plan, torch.Generator(trainer.rng.device).manual_seed(0)
            classes = trainer.teacher.classes
            asked = draw(_SHOWN // 2, noise_dim=plan.noise_dim, classes=classes, spread=plan.spread, rng=own)
            with evaluating(trainer.generator):
                made: Tensor = trainer.generator(asked)
            return made
        if phase == "images" and trainer.draft is not None:
            return trainer.draft.images(trainer.preprocessing)[:_SHOWN]
        return None if trainer.pool is None else trainer.pool.lesson.images[:_SHOWN]

    def _histograms(self, step: int, phase: str) -> None:
        """Each layer's weights in steps of its grid."""
        for name, layer in self.trainer.student.layers():
            steps = layer.weight / layer.weight_quantizer.scale.view(-1, *(1,) * (layer.weight.dim() - 1))
            self.writer.add_histogram(f"{phase}/{name} in steps", steps.detach().cpu(), step)
