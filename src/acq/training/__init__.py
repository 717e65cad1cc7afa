"""The training loop and its phases, one per file."""

from acq.training.automatic_bits import automatic_bits
from acq.training.calibration import Calibration
from acq.training.context import Context
from acq.training.conversion import Conversion
from acq.training.distillation import Distillation
from acq.training.generator import GeneratorTraining
from acq.training.images import ImageRefinement
from acq.training.loop import Training

__all__ = [
    "Calibration",
    "Context",
    "Conversion",
    "Distillation",
    "GeneratorTraining",
    "ImageRefinement",
    "Training",
    "automatic_bits",
]
