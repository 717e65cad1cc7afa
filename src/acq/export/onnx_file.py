"""Exports a student to an ONNX file: writes it beside the target, checks it, and renames or removes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from acq.core.pixels import from_bytes, to_bytes
from acq.errors import RequestError, first_line
from acq.export.check import LEAST_AGREEMENT, Parity, check
from acq.export.engines import ENGINES, require_engines
from acq.export.graph import onnx_model
from acq.files.atomic import replacing
from acq.quantization.student import Student


@dataclass(frozen=True)
class Exported:
    """A checked file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        parity: The comparison with the student.
    """

    path: Path
    bytes: int
    parity: Parity


def export_onnx(
    student: Student,
    path: Path,
    images: Tensor,
    *,
    raw_images: bool = False,
    engines: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Export a student and check the file before it gets its name. If the check fails, no file remains.

    Args:
        student: The student.
        path: The file to write; missing folders are created.
        images: Normalised images [N, C, H, W] for the check.
        raw_images: Write a file that takes bytes [N, H, W, C].
        engines: Names of engines on which the file must agree, beside ONNX Runtime.
        facts: More entries of the file's metadata.

    Returns:
        The file and its comparison with the student.

    Raises:
        RequestError: The images have another size, an operator cannot be exported, or the path cannot be written.
            Or the decisions agree on fewer than 99 % of the images, on ONNX Runtime or an engine of ``engines``.
    """
    require_engines(engines)
    if not len(images) or tuple(images.shape[1:]) != student.input_size:
        raise RequestError(
            f"images {tuple(images.shape)} cannot check the file; give at least one of {student.input_size}"
        )
    if raw_images and student.preprocessing is not None:  # synthetic images are not whole bytes
        images = from_bytes(to_bytes(images, student.preprocessing), student.preprocessing)
    content = onnx_model(student, raw_images=raw_images, facts=facts).SerializeToString()
    if path.suffix != ".onnx" or path.is_dir():
        raise RequestError(f"{path} is not the name of an ONNX file; give one that ends in .onnx as --out")
    try:
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
                parity = check(temporary, student, images)
                _require_agreement(parity, engines)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RequestError(
            f"the student's file is not valid ONNX ({first_line(error)}); evaluate or load the run folder instead"
        ) from error
    return Exported(path, len(content), parity)


def _require_agreement(parity: Parity, required: Sequence[str]) -> None:
    matches = {"onnxruntime": [parity.plain, parity.optimised]}
    matches |= {name: [parity.engines[name].match] for name in required if name in parity.engines}
    for name, found in matches.items():
        worst = min(found, key=lambda match: match.agreement)
        if not parity.agrees(worst):
            way_out = "leave it out of --engines" if name in required else "evaluate or load the run folder instead"
            raise RequestError(
                f"on {ENGINES[name].label} the ONNX file decides like the student on only {worst.agreement:.1f} % of "
                f"{parity.images} images, below {LEAST_AGREEMENT:g} %, so it was removed; {way_out}"
            )
    for name in required:
        if name in parity.failures:
            raise RequestError(f"{parity.failures[name]}; it was named with --engines, so the file was removed")


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
