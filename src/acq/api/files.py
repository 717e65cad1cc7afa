"""Load a student, export it, and measure the exported file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from acq.core.extras import require_onnx
from acq.errors import RequestError
from acq.files.atomic import write_atomically
from acq.quantization.student import Student
from acq.runs import exporting, student_file
from acq.runs.exporting import scenes_for
from acq.runs.folder import require_run
from acq.runs.names import LATENCY, MODEL

if TYPE_CHECKING:
    from acq.export.benchmark import Benchmark
    from acq.export.engine import Engine
    from acq.export.onnx_file import Exported


def load(run: str | Path) -> Student:
    """The student of a finished run folder, without the network that it came from.

    Raises:
        RequestError: There is no finished run, or a file is damaged.
    """
    if not Path(run).is_dir():
        raise RequestError(f"there is no run folder {run}; give a folder that acq quantize wrote")
    return student_file.load(Path(run)).eval()


def export_onnx(
    student: Student,
    path: str | Path,
    *,
    images: Tensor | None = None,
    raw_images: bool = False,
    engines: Sequence[str] = (),
) -> Exported:
    """Write a student as an ONNX file of integers and compare it with the student before it gets its name.

    Args:
        student: A converted student.
        path: Of the file, which ends in ``.onnx``.
        images: Normalised images [N, C, H, W] for the comparison; by default 64 procedural scenes.
        raw_images: Make a file that takes bytes [N, H, W, C] and normalises them itself.
        engines: Names of engines on which the file must agree, beside ONNX Runtime, such as ``openvino``.

    Raises:
        RequestError: The extra ``onnx`` is not installed; an operator cannot be exported; the file cannot be written;
            or fewer than 99 % of the decisions are the student's. No file is left behind.
    """
    require_onnx()
    from acq.export.onnx_file import export_onnx as export_file

    shown = scenes_for(student) if images is None else images
    return export_file(student, Path(path), shown, raw_images=raw_images, engines=engines)


def export_run(
    run: str | Path, path: str | Path | None = None, *, raw_images: bool = False, engines: Sequence[str] = ()
) -> Exported:
    """Write a finished run's student as an ONNX file; see ``export_onnx``.

    The file is compared with the student on the run's synthetic images. Latencies of an earlier ``RUN/model.onnx`` are
    deleted.

    Args:
        run: The run folder.
        path: Of the file; ``RUN/model.onnx`` by default.
        raw_images: Make a file that takes bytes [N, H, W, C] and normalises them itself.
        engines: Names of engines on which the file must agree, beside ONNX Runtime, such as ``openvino``.

    Raises:
        RequestError: As ``export_onnx``, or there is no finished run.
    """
    place = None if path is None else Path(path)
    return exporting.export_run(Path(run), place, raw_images=raw_images, engines=engines)


def engine(file: str | Path) -> Engine:
    """An exported file as a classifier on ONNX Runtime.

    Raises:
        RequestError: The extra ``onnx`` is not installed, or ``acq export`` did not write the file.
    """
    require_onnx()
    from acq.export.engine import Engine

    return Engine(Path(file))


def benchmark(run: str | Path, *, seconds: float = 5.0) -> Benchmark:
    """Latency, size and memory of a run's ONNX file beside the same network in floating point, on this machine.

    The figures are written to ``RUN/latency.json``, which the report shows. Where the network came from an ONNX file,
    both files take what that file took. What ``--outputs`` cut off is in neither.

    Args:
        run: The run folder; ``RUN/model.onnx`` is written first if it is missing.
        seconds: How long each latency is measured.

    Raises:
        RequestError: As ``export_run``, or the folder cannot be written.
    """
    require_onnx()
    from acq.export.benchmark import benchmark as measure

    folder = Path(run)
    require_run(folder)
    if not (folder / MODEL).exists():
        export_run(folder)
    student, form = load(folder), exporting.form_in(folder, student_file.load_facts(folder))
    found = measure(student, folder / MODEL, form=form, seconds=seconds)
    write_or_refuse(folder / LATENCY, json.dumps(asdict(found), indent=1) + "\n")
    return found


def write_or_refuse(path: Path, text: str) -> None:
    """Write a file; RequestError where that is not possible."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
