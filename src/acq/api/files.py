"""Load a student, export it, and measure the exported file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acq.errors import RequestError
from acq.files.atomic import write_atomically
from acq.quantization.student import Student
from acq.runs import checkpoint, student_file
from acq.runs.folder import require_run
from acq.runs.names import LATENCY, MODEL, STATE
from acq.synthesis.scenes import normalised_scenes

if TYPE_CHECKING:
    from acq.export.benchmark import Benchmark
    from acq.export.engine import Engine
    from acq.export.onnx_file import Exported

_CHECKED_IMAGES, _CHECKED_SCENES = 256, 64  # on which an exported file is compared with the student


def load(run: str | Path) -> Student:
    """The student of a finished run folder, without the network that it came from.

    Raises:
        RequestError: There is no finished run, or a file is damaged.
    """
    if not Path(run).is_dir():
        raise RequestError(f"there is no run folder {run}; give a folder that acq quantize wrote")
    return student_file.load(Path(run)).eval()


def export_onnx(
    student: Student, path: str | Path, *, images: Tensor | None = None, raw_images: bool = False
) -> Exported:
    """Write a student as an ONNX file of integers and compare it with the student before it gets its name.

    Args:
        student: A converted student.
        path: Of the file, which ends in ``.onnx``.
        images: Normalised images [N, C, H, W] for the comparison; by default 64 procedural scenes.
        raw_images: Make a file that takes bytes [N, H, W, C] and normalises them itself.

    Raises:
        RequestError: The extra ``onnx`` is not installed; an operator cannot be exported; the file cannot be written;
            or fewer than 99 % of the images get the student's class. No file is left behind.
    """
    export_file, _ = _onnx()
    return export_file(student, Path(path), _scenes(student) if images is None else images, raw_images=raw_images)


def export_run(run: str | Path, path: str | Path | None = None, *, raw_images: bool = False) -> Exported:
    """Write a finished run's student as an ONNX file; see ``export_onnx``.

    The file is compared with the student on up to 256 of the run's synthetic images. Latencies of an earlier
    ``RUN/model.onnx`` are deleted.

    Args:
        run: The run folder.
        path: Of the file; ``RUN/model.onnx`` by default.
        raw_images: Make a file that takes bytes [N, H, W, C] and normalises them itself.

    Raises:
        RequestError: As ``export_onnx``, or there is no finished run.
    """
    export_file, _ = _onnx()
    folder = Path(run)
    require_run(folder)
    student, facts = load(folder), student_file.load_facts(folder)
    origin = facts.get("origin", {}) | facts.get("config", {})
    kept = ("model", "first_last_bits", "add_bits", "preset", "seed")
    images = _synthetic_images(folder)
    file = folder / MODEL if path is None else Path(path)
    made = export_file(
        student,
        file,
        _scenes(student) if images is None else images,
        raw_images=raw_images,
        facts={**{key: origin[key] for key in kept if key in origin}, "acq": version("acquant")},
    )
    if made.path.resolve() == (folder / MODEL).resolve():
        try:
            (folder / LATENCY).unlink(missing_ok=True)
        except OSError as error:
            raise RequestError(f"{folder / LATENCY} cannot be removed: {error.strerror}") from error
    return made


def engine(file: str | Path) -> Engine:
    """An exported file as a classifier on ONNX Runtime.

    Raises:
        RequestError: The extra ``onnx`` is not installed, or ``acq export`` did not write the file.
    """
    return _onnx()[1](Path(file))


def benchmark(run: str | Path, *, seconds: float = 5.0) -> Benchmark:
    """Latency, size and memory of a run's ONNX file beside the same network in floating point, on this machine.

    The figures are written to ``RUN/latency.json``, which the report shows.

    Args:
        run: The run folder; ``RUN/model.onnx`` is written first if it is missing.
        seconds: How long each latency is measured.

    Raises:
        RequestError: As ``export_run``, or the folder cannot be written.
    """
    _onnx()
    from acq.export.benchmark import benchmark as measure

    folder = Path(run)
    require_run(folder)
    if not (folder / MODEL).exists():
        export_run(folder)
    found = measure(load(folder), folder / MODEL, seconds=seconds)
    write_or_refuse(folder / LATENCY, json.dumps(asdict(found), indent=1) + "\n")
    return found


def write_or_refuse(path: Path, text: str) -> None:
    """Write a file; RequestError where that is not possible."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error


def _onnx() -> tuple[Callable[..., Exported], type[Engine]]:
    try:
        from acq.export.engine import Engine
        from acq.export.onnx_file import export_onnx as export_file
    except ModuleNotFoundError as error:
        raise RequestError(f"ONNX files need {error.name}; install it with pip install 'acquant[onnx]'") from error
    return export_file, Engine


def _synthetic_images(run: Path) -> Tensor | None:
    """Some images of a run's dataset; None where its checkpoint is gone or damaged."""
    if not checkpoint.exists(run / STATE):
        return None
    try:
        dataset = checkpoint.load(run / STATE).get("training", {}).get("context", {}).get("dataset")
    except RequestError:
        return None  # the student is not part of the checkpoint, so it is whole
    return None if dataset is None else dataset["batch"]["images"][:_CHECKED_IMAGES].contiguous()


def _scenes(student: Student) -> Tensor:
    known = student.preprocessing
    if known is None:
        raise RequestError("the normalisation of this student's images is not known; give images for the comparison")
    return normalised_scenes(_CHECKED_SCENES, known, torch.Generator().manual_seed(0))
