"""An exported file on ONNX Runtime, as a classifier like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from acq.core.values import Preprocessing
from acq.errors import RequestError, first_line
from acq.export.graph import IMAGES, RAW
from acq.files.images import to_bytes
from acq.files.screening import screened


class Engine:
    """Runs a file on the CPU: normalised images [N, C, H, W] to logits [N, K].

    ``level`` is ONNX Runtime's of graph optimisation, ``threads`` 0 for as many as torch uses, and ``optimised`` where
    the graph that really runs is written. ``preprocessing``, ``classes`` and ``model`` are the file's own.

    Nothing is opened that ``screened`` refuses.

    Raises:
        RequestError: the file cannot be read, or was not written by `acq export`.
    """

    def __init__(
        self, file: Path, level: str = "ORT_ENABLE_ALL", *, threads: int = 0, optimised: Path | None = None
    ) -> None:
        known = screened(file)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 4  # errors come as exceptions
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        try:
            self.raw = known.facts["images"] == RAW
            self.classes = int(known.facts["classes"])
            self.model = known.facts.get("model", "")
            self.preprocessing = _preprocessing(known.facts) if "mean" in known.facts else None
        except (KeyError, ValueError) as error:
            raise RequestError(f"{file} was not written by acq export; give a run folder or such a file") from error
        try:
            self.session = onnxruntime.InferenceSession(
                known.content, options, providers=["CPUExecutionProvider"], enable_fallback=False
            )  # a second attempt would be told on standard output
        except Exception as error:  # the runtime's own have no common base, and a stranger's file can cause any
            raise RequestError(f"{file} cannot be run by ONNX Runtime: {first_line(error)[:200]}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        return self.run(self.fed(images))

    def fed(self, images: Tensor) -> np.ndarray:
        """What the file takes for normalised images: themselves, or bytes."""
        if self.raw and self.preprocessing is not None:
            return to_bytes(images, self.preprocessing)
        fed: np.ndarray = images.numpy()
        return fed

    def run(self, fed: np.ndarray) -> Tensor:
        """Logits of what the file takes; RequestError if the engine fails at it."""
        try:
            (logits,) = self.session.run(None, {IMAGES: fed})
        except Exception as error:  # as above
            raise RequestError(f"ONNX Runtime cannot run the file: {first_line(error)[:200]}") from error
        if logits.shape != (len(fed), self.classes):
            raise RequestError(
                f"the file gives {logits.shape} for {len(fed)} images of {self.classes} classes; export it again"
            )
        return torch.from_numpy(logits)


def _preprocessing(known: dict[str, str]) -> Preprocessing:
    channels, height, width = map(int, known["input_size"].split(","))
    mean, std = (tuple(map(float, known[name].split(","))) for name in ("mean", "std"))
    if (len(mean), len(std)) != (channels, channels):
        raise ValueError("not as many means and deviations as channels")
    return Preprocessing((channels, height, width), mean, std)
