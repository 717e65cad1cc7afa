"""Runs an exported file on ONNX Runtime, as a classifier like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acq.core.pixels import to_bytes
from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError, first_line
from acq.export.answers import FileAnswer
from acq.export.form import LAYOUT
from acq.export.graph import RAW
from acq.files.class_names import NAMES, checked_names, fitting
from acq.files.documents import from_json
from acq.files.framing import framing_fault
from acq.files.onnx_session import session_of
from acq.files.screening import screened

_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class Engine:
    """Runs a file on the CPU: normalised images [N, C, H, W] to values [N, L] that decide as the logits do.

    Files that ``acq.files.screening`` refuses are never opened.

    Args:
        file: The ONNX file.
        level: ONNX Runtime's level of graph optimisation.
        threads: Number of threads; 0 means as many as torch uses.
        optimised: Where to write the optimised graph, if anywhere.

    Attributes:
        raw: Whether the file takes bytes.
        answer: What the file returns, and how it decides.
        model: The model's name in the file; may be empty.
        preprocessing: The normalisation in the file, if it has one.
        batch: The number of images that the file takes at once; None where that is free.
        class_names: In class order; empty where they are not known.

    Raises:
        RequestError: The file cannot be read, or is not a file of ``acq export``.
    """

    def __init__(
        self, file: Path, level: str = "ORT_ENABLE_ALL", *, threads: int = 0, optimised: Path | None = None
    ) -> None:
        known = screened(file)
        try:
            self.raw = known.facts["images"] == RAW
            self.answer = FileAnswer.read(known.facts)
            self.model = known.facts.get("model", "")
            self.preprocessing = _preprocessing(known.facts) if "mean" in known.facts else None
            names = checked_names(from_json(known.facts.get(NAMES, "[]")), str(file))
            self.class_names = fitting((), names, self.answer.output)
        except (KeyError, ValueError) as error:
            raise RequestError(f"{file} was not written by acq export; give a run folder or such a file") from error
        try:
            self.session = session_of(
                known.content, level, threads=threads or torch.get_num_threads(), optimised=optimised
            )
        except Exception as error:  # the runtime's errors have no common base, and a foreign file can cause any
            raise RequestError(
                f"ONNX Runtime cannot run {file} ({first_line(error)}); export it again, or update onnxruntime"
            ) from error
        (self._entrance,) = self.session.get_inputs()
        first = self._entrance.shape[0]
        self.batch = first if isinstance(first, int) else None
        self._channels_last = known.facts.get(LAYOUT) == "NHWC"

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] to values [N, L] that decide as the logits do."""
        return self.answer.logits(self.run(self.input_for(images)))

    def input_for(self, images: Tensor) -> np.ndarray:
        """The file's input for normalised images: in its layout and type, or bytes [N, H, W, C]."""
        if self.raw and self.preprocessing is not None:
            return to_bytes(images, self.preprocessing)
        kind = self.kind
        images = images.permute(0, 2, 3, 1).contiguous() if self._channels_last else images
        array: np.ndarray = (images.round() if kind == np.uint8 else images).numpy().astype(kind, copy=False)
        return array

    @property
    def kind(self) -> Any:
        """The type of the file's input."""
        return _KINDS[self._entrance.type]

    def run(self, inputs: np.ndarray) -> tuple[Tensor, ...]:
        """All that the file returns for its input, in the order of ``answer.names``.

        Raises:
            RequestError: The engine fails, or the output that decides has another shape than the file says.
        """
        try:
            found = self._computed(inputs)
        except Exception as error:  # as above
            raise RequestError(f"ONNX Runtime cannot run the file ({first_line(error)}); export it again") from error
        for place, part in zip(self.answer.places, self.answer.output.parts, strict=True):
            if found[place].size != len(inputs) * part.numbers:
                raise RequestError(
                    f"the file returns {found[place].shape} for {len(inputs)} images of {part.numbers} logits; "
                    "export it again"
                )
        return tuple(map(torch.from_numpy, found))

    def _computed(self, inputs: np.ndarray) -> list[np.ndarray]:
        """All outputs, computed for as many images at once as the file takes."""
        names, count = list(self.answer.names), len(inputs)
        if self.batch is None or self.batch == count:
            found: list[np.ndarray] = self.session.run(names, {self._entrance.name: inputs})
            return found
        short = -count % self.batch
        inputs = np.concatenate([inputs, inputs[:1].repeat(short, 0)]) if short else inputs
        runs = [
            self.session.run(names, {self._entrance.name: inputs[at : at + self.batch]})
            for at in range(0, len(inputs), self.batch)
        ]
        return [np.concatenate([run[place] for run in runs])[:count] for place in range(len(names))]


def _preprocessing(known: dict[str, str]) -> Preprocessing:
    channels, height, width = map(int, known["input_size"].split(","))
    mean, std = (tuple(map(float, known[name].split(","))) for name in ("mean", "std"))
    if (len(mean), len(std)) != (channels, channels):
        raise ValueError("the numbers of means, deviations and channels differ")
    framing = Framing(int(known["resize"]), known["interpolation"]) if "resize" in known else None
    found = Preprocessing((channels, height, width), mean, std, framing)
    if (fault := framing_fault(found)) is not None:
        raise ValueError(fault)
    return found
