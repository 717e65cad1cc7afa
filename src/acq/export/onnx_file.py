"""From a student to a file under its final name: written beside it, checked, and moved there or thrown away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from acq.errors import RequestError, first_line
from acq.export.check import Parity, check
from acq.export.graph import onnx_model
from acq.files.images import normalise, to_bytes
from acq.quantization.student import Student

LEAST_AGREEMENT = 99.0  # percent


@dataclass(frozen=True)
class Exported:
    """A checked file, its size, and how it compares with the student."""

    path: Path
    bytes: int
    parity: Parity


def export_onnx(
    student: Student, path: Path, images: Tensor, *, raw_images: bool = False, facts: Mapping[str, Any] | None = None
) -> Exported:
    """Write ``student`` as an ONNX file and check it on normalised ``images`` [N, C, H, W] before it gets its name.

    Raises:
        RequestError: the images are none of the student's, an operator cannot be exported, the place cannot be written,
            or the file's top-1 classes agree with the student's on fewer than 99 % of the images, on ONNX Runtime or,
            where it is installed, on OpenVINO; no file is left.
    """
    size = next(node.meta["shape"] for node in student.graph.nodes if node.op == "placeholder")[1:]
    if not len(images) or tuple(images.shape[1:]) != tuple(size):
        raise RequestError(f"images {tuple(images.shape)} cannot check the file; give at least one of {tuple(size)}")
    if raw_images and student.preprocessing is not None:  # synthetic images are no whole bytes
        images = normalise(to_bytes(images, student.preprocessing), student.preprocessing)
    content = onnx_model(student, raw_images=raw_images, facts=facts).SerializeToString()
    if path.suffix != ".onnx" or path.is_dir():
        raise RequestError(f"{path} is no name of an ONNX file; give one that ends in .onnx as --out")
    partial = path.with_name(f".{path.name}.{os.getpid()}.onnx")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
        parity = check(partial, student, images)
        _require_agreement(parity)
        with _writing(path):
            os.replace(partial, path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RequestError(f"the student gives no valid ONNX file: {first_line(error)[:200]}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return Exported(path, len(content), parity)


def _require_agreement(parity: Parity) -> None:
    matches = {"ONNX Runtime": min(parity.plain.agreement, parity.optimised.agreement)}
    if parity.openvino is not None:
        matches["OpenVINO"] = parity.openvino.match.agreement
    engine, worst = min(matches.items(), key=lambda match: match[1])
    if worst < LEAST_AGREEMENT:
        elsewhere = "; without the extra openvino it is checked on ONNX Runtime alone" if engine == "OpenVINO" else ""
        raise RequestError(
            f"on {engine} the ONNX file chooses the student's class on {worst:.1f} % of {parity.images} images only, "
            f"less than {LEAST_AGREEMENT:g} %, so it was not kept{elsewhere}"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
