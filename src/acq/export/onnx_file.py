"""Exports a student to an ONNX file: writes it beside the target, checks it, and renames or removes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from acq.core.pixels import from_bytes, to_bytes
from acq.errors import RequestError, first_line
from acq.export.check import Parity, check
from acq.export.graph import onnx_model
from acq.files.atomic import replacing
from acq.quantization.student import Student

LEAST_AGREEMENT = 99.0  # percent


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
    student: Student, path: Path, images: Tensor, *, raw_images: bool = False, facts: Mapping[str, Any] | None = None
) -> Exported:
    """Export a student and check the file before it gets its name. If the check fails, no file remains.

    Args:
        student: The student.
        path: The file to write; missing folders are created.
        images: Normalised images [N, C, H, W] for the check.
        raw_images: Write a file that takes bytes [N, H, W, C].
        facts: More entries of the file's metadata.

    Returns:
        The file and its comparison with the student.

    Raises:
        RequestError: The images have another size, an operator cannot be exported, or the path cannot be written.
            Or the top-1 classes agree on fewer than 99 % of the images, on ONNX Runtime or OpenVINO.
    """
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
                _require_agreement(parity)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RequestError(
            f"the student's file is not valid ONNX ({first_line(error)}); evaluate or load the run folder instead"
        ) from error
    return Exported(path, len(content), parity)


def _require_agreement(parity: Parity) -> None:
    matches = {"ONNX Runtime": min(parity.plain.agreement, parity.optimised.agreement)}
    if parity.openvino is not None:
        matches["OpenVINO"] = parity.openvino.match.agreement
    engine, worst = min(matches.items(), key=lambda match: match[1])
    if worst < LEAST_AGREEMENT:
        way_out = (
            "uninstall the extra openvino to check on ONNX Runtime only"
            if engine == "OpenVINO"
            else "evaluate or load the run folder instead"
        )
        raise RequestError(
            f"on {engine} the ONNX file has the student's top-1 class on only {worst:.1f} % of {parity.images} images, "
            f"below {LEAST_AGREEMENT:g} %, so it was removed; {way_out}"
        )


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
