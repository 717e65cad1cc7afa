"""Writes a finished run's student as an ONNX file, checked on the run's synthetic images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acq.core.extras import require_onnx
from acq.core.file_form import FileForm
from acq.errors import RequestError
from acq.files.class_names import NAMES
from acq.files.limits import read_bytes
from acq.quantization.student import Student
from acq.runs import checkpoint, student_file
from acq.runs.folder import require_run
from acq.runs.names import LATENCY, MODEL, STATE, TAIL
from acq.synthesis.augmentation import augment
from acq.synthesis.scenes import normalised_scenes

if TYPE_CHECKING:
    from acq.export.onnx_file import Exported

_MOST_IMAGES, _MOST_VALUES = 512, 20_000_000  # of the check
_SCENES = 64


def export_run(
    folder: Path, path: Path | None = None, *, raw_images: bool = False, engines: Sequence[str] = ()
) -> Exported:
    """Write a finished run's student as an ONNX file.

    The file is compared with the student on the run's synthetic images and augmented views of them, up to 512. Where
    the network came from an ONNX file, the file has its form and replaces it.
    Latencies of an earlier ``RUN/model.onnx`` are deleted.

    Args:
        folder: The run folder.
        path: Of the file; ``RUN/model.onnx`` by default.
        raw_images: Make a file that takes bytes [N, H, W, C] and normalises them itself.
        engines: Names of engines on which the file must agree, beside ONNX Runtime.

    Raises:
        RequestError: There is no finished run, an operator cannot be exported, or the file differs from the student.
    """
    require_onnx()
    from acq.export.onnx_file import export_onnx

    require_run(folder)
    student, described = student_file.load(folder).eval(), student_file.load_description(folder)
    facts, names = described.facts, described.class_names
    origin = facts.get("origin", {}) | facts.get("config", {})
    form = None if raw_images else form_in(folder, facts)
    kept = ("model", "first_last_bits", "add_bits", "preset", "seed")
    made = export_onnx(
        student,
        folder / MODEL if path is None else path,
        _images(folder, student),
        raw_images=raw_images,
        engines=engines,
        facts={
            **{key: origin[key] for key in kept if key in origin},
            **({NAMES: json.dumps(names)} if names else {}),
            "acq": version("acquant"),
        },
        form=form,
        tail=None if form is None or not form.tail else _tail(folder, form),
    )
    if made.path.resolve() == (folder / MODEL).resolve():
        try:
            (folder / LATENCY).unlink(missing_ok=True)
        except OSError as error:
            raise RequestError(f"{folder / LATENCY} cannot be removed: {error.strerror}") from error
    return made


def form_in(folder: Path, facts: dict[str, Any]) -> FileForm | None:
    """The form of the ONNX file that a run's network came from; None where it came from none.

    Args:
        folder: The run folder.
        facts: What was saved with its student.

    Raises:
        RequestError: The facts describe no form.
    """
    known = facts.get("origin", {}).get("form")
    try:
        return None if known is None else FileForm.read(known)
    except ValueError as error:
        raise RequestError(f"{error} in {folder}; quantize again") from error


def _tail(folder: Path, form: FileForm) -> bytes:
    """What the file had behind the network's outputs.

    Raises:
        RequestError: It is not there, or another than the run began with.
    """
    from acq.files.screening import TAIL_BYTES, screened_tail

    path = folder / TAIL
    try:
        content = read_bytes(path, TAIL_BYTES, "quantize again")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); quantize again") from error
    if hashlib.sha256(content).hexdigest() != form.tail:
        raise RequestError(f"{path} is not the one that the run began with; quantize again")
    return screened_tail(content)


def scenes_for(student: Student) -> Tensor:
    """Procedural scenes that can check a student's file.

    Raises:
        RequestError: The student's normalisation is not known.
    """
    known = student.preprocessing
    if known is None:
        raise RequestError("the normalisation of this student's images is not known; give images for the comparison")
    return normalised_scenes(_SCENES, known, torch.Generator().manual_seed(0))


def _images(folder: Path, student: Student) -> Tensor:
    """Images for the check: the run's own, or scenes where its checkpoint is gone or damaged."""
    own = _synthetic_images(folder)
    if own is None:
        return scenes_for(student)
    count = min(_MOST_IMAGES, max(1, _MOST_VALUES // math.prod(own.shape[1:])))
    own = own[:count].contiguous()
    more = augment(own, torch.Generator().manual_seed(0))[: count - len(own)]
    return torch.cat((own, more))


def _synthetic_images(folder: Path) -> Tensor | None:
    if not checkpoint.exists(folder / STATE):
        return None
    try:
        dataset = checkpoint.load(folder / STATE).get("training", {}).get("context", {}).get("dataset")
    except RequestError:
        return None  # the student is not part of the checkpoint, so it is whole
    images: Tensor | None = None if dataset is None else dataset["batch"]["images"]
    return images
