"""Exports a student to an ONNX file: writes it beside the target, checks it, and renames or removes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from acq.core.file_form import FileForm
from acq.core.outputs import agreement_of
from acq.core.pixels import from_bytes, to_bytes
from acq.core.values import Preprocessing
from acq.errors import RequestError, first_line
from acq.export.check import Parity, check
from acq.export.engine import Engine
from acq.export.engines import ENGINES, REFERENCE, require_engines
from acq.export.form import in_form
from acq.export.graph import onnx_model
from acq.export.tail import joined, require_equal
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
    form: FileForm | None = None,
    tail: bytes | None = None,
) -> Exported:
    """Export a student and check the file before it gets its name. If the check fails, no file remains.

    Args:
        student: The student.
        path: The file to write; missing folders are created.
        images: Normalised images [N, C, H, W] for the check.
        raw_images: Write a file that takes bytes [N, H, W, C].
        engines: Names of engines on which the file must agree, beside ONNX Runtime.
        facts: More entries of the file's metadata.
        form: The form of the file, where the network came from an ONNX file.
        tail: What that file had behind the network's outputs; it is put behind the student's after the comparison.

    Returns:
        The file and its comparison with the student.

    Raises:
        RequestError: The images have another size, an operator cannot be exported, or the path cannot be written.
            Or the decisions agree on too few images (``Parity.agrees``), on ONNX Runtime or an engine of ``engines``.
    """
    require_engines(engines)
    if path.suffix != ".onnx" or path.is_dir():
        raise RequestError(f"{path} is not the name of an ONNX file; give one that ends in .onnx as --out")
    if not len(images) or tuple(images.shape[1:]) != student.input_size:
        raise RequestError(
            f"images {tuple(images.shape)} cannot check the file; give at least one of {student.input_size}"
        )
    images = as_taken(images, student.preprocessing, raw_images, form)
    model = onnx_model(student, raw_images=raw_images, facts=facts)
    if form is not None:
        in_form(model, form)
    content = model.SerializeToString()
    try:
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
                parity = check(temporary, student, images)
                _require_agreement(parity, engines)
                if tail is not None:
                    content = with_tail(temporary, model, tail, images)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RequestError(
            f"the student's file is not valid ONNX ({first_line(error)}); evaluate or load the run folder instead"
        ) from error
    return Exported(path, len(content), parity)


def as_taken(images: Tensor, known: Preprocessing | None, raw_images: bool, form: FileForm | None) -> Tensor:
    """Images as a file can take them: synthetic ones are not whole bytes."""
    if form is not None and form.kind == "float16":
        return images.half().float()
    if known is not None and (raw_images or (form is not None and form.kind == "uint8")):
        return from_bytes(to_bytes(images, known), known)
    return images


def with_tail(file: Path, model: onnx.ModelProto, tail: bytes, images: Tensor) -> bytes:
    """Write a model again, with what was behind the network's outputs, and return the content.

    Args:
        file: Holds ``model``; it is replaced.
        model: The student's, in the form of the network's file.
        tail: What that file has behind the network's outputs.
        images: As many as the file takes at once, or more, as ``as_taken`` gives them.

    Raises:
        RequestError: The two do not fit together.
    """
    entrance, rest = Engine(file), onnx.load_model_from_string(tail)
    whole: bytes = joined(model, rest).SerializeToString()
    file.write_bytes(whole)
    require_equal(file, model.SerializeToString(), rest, entrance.input_for(images[: entrance.batch or 1]))
    return whole


def _require_agreement(parity: Parity, required: Sequence[str]) -> None:
    others = [name for name in required if name != REFERENCE]
    matches = {REFERENCE: [parity.plain, parity.optimised]}
    matches |= {name: [parity.engines[name].match] for name in others if name in parity.engines}
    for name, found in matches.items():
        worst = min(found, key=lambda match: match.agreement)
        if not parity.agrees(worst):
            way_out = "leave it out of --engines" if name in others else "evaluate or load the run folder instead"
            raise RequestError(
                f"on {ENGINES[name].label} the ONNX file agrees with the student on only "
                f"{agreement_of(parity.kind, worst.agreement, f'{parity.images} images')}, below {parity.bar}, "
                f"so it was removed; {way_out}"
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
