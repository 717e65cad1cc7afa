"""Saves and exports an untrained student once, so that what cannot be done is said before a run begins."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from acq.core.extras import missing_package
from acq.core.file_form import FileForm
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.network.operators import Role
from acq.quantization.calibration import calibrate
from acq.quantization.integers import convert_to_integers
from acq.quantization.node_plan import NodePlan
from acq.quantization.student import Student
from acq.runs import student_file
from acq.synthesis.scenes import normalised_scenes

if TYPE_CHECKING:
    import onnx

NOT_WANTED = "no file is wanted (--no-export)"
_SCENES = 8
_NOWHERE = (Role.IMAGE, Role.SHAPE, Role.CONSTANT)  # no operator of a file


@dataclass(frozen=True)
class Rehearsal:
    """What an untrained student becomes in a file.

    Attributes:
        engines: Names of the engines that run the file.
        integer: Engines on which an operator runs on integers, by the operator's public name.
        reasons: Why an operator cannot be in a file, by public name.
        refusal: Why there can be no file; empty where there can be one.
        untried: Why no file was written; empty where that was tried.
        failures: Why an engine cannot run the file, by its name.
    """

    engines: tuple[str, ...] = ()
    integer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""
    untried: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)

    def require_file(self, engines: Sequence[str] = ()) -> None:
        """Refuse a run whose student cannot be exported.

        Args:
            engines: Names of engines that must run the file.

        Raises:
            RequestError: No file can be written, or one of the engines is not known or does not run it.
        """
        if engines and not self.untried:
            from acq.export.engines import require_engines

            require_engines(engines)
        if self.refusal:
            raise RequestError(f"{self.refusal}; --no-export quantizes without a file")
        for name in engines:
            if name in self.failures:
                raise RequestError(f"{self.failures[name]}; leave {name} out of --engines")

    def notes(self) -> list[str]:
        """What a user should know, in sentences."""
        if self.untried:
            return [f"the export was not tried, because {self.untried}"]
        return [self.refusal] if self.refusal else list(self.failures.values())

    def place_of(self, node: NodePlan) -> str:
        """How a file computes an operator: on integers, in floating point, or not at all and why."""
        if node.name in self.reasons:
            return f"not possible: {self.reasons[node.name]}"
        if self.untried or self.refusal or node.role in _NOWHERE:
            return ""
        found = self.integer.get(node.name)
        if node.floating or found == ():
            return "float"
        if found is None or len(found) == len(self.engines):
            return "integer"
        return f"integer on {', '.join(found)}"


def rehearse(
    student: Student,
    preprocessing: Preprocessing,
    *,
    export: bool = True,
    form: FileForm | None = None,
    tail: bytes | None = None,
) -> Rehearsal:
    """Calibrate a copy of a student on a few scenes, save and load it, export it and open the file on each engine.

    Where the network came from an ONNX file, the student's file also gets its form and what it has behind the network.

    Args:
        student: Before its calibration; it does not change.
        preprocessing: How images are normalised.
        export: Whether to write a file.
        form: Of the ONNX file that the network came from.
        tail: What that file has behind the network's outputs.

    Raises:
        RequestError: The student cannot be calibrated or saved, or temporary files cannot be written.
    """
    trial = copy.deepcopy(student).cpu()
    calibrate(trial, [normalised_scenes(_SCENES, preprocessing, torch.Generator().manual_seed(0))])
    convert_to_integers(trial)
    try:
        with tempfile.TemporaryDirectory() as folder:
            student_file.save(trial, Path(folder), {})
            trial = student_file.load(Path(folder)).eval()
            return _exported(trial, Path(folder), form, tail) if export else Rehearsal(untried=NOT_WANTED)
    except OSError as error:
        raise RequestError(
            f"the folder for temporary files cannot be written ({error.strerror}); set TMPDIR to another folder"
        ) from error


def _exported(student: Student, folder: Path, form: FileForm | None, tail: bytes | None) -> Rehearsal:
    missing = missing_package()
    if missing is not None:
        return Rehearsal(untried=f"{missing} is not installed (pip install 'acquant[onnx]' adds it)")
    import onnx

    from acq.export.engines import REFERENCE, installed_engines
    from acq.export.floating import NoTranslationError
    from acq.export.graph import onnx_model
    from acq.export.kernels import integer_operators

    try:
        model = onnx_model(student, named=True)
    except NoTranslationError as error:
        return Rehearsal(reasons=error.reasons, refusal=str(error))
    file, kernels, failures = folder / "model.onnx", {}, {}
    onnx.save(model, file)
    for name, kind in installed_engines().items():
        try:
            kernels[name] = kind.open(file).kernels
        except RequestError as error:
            if name == REFERENCE:
                return Rehearsal(refusal=str(error))
            failures[name] = str(error)
    operators = integer_operators(model, kernels)
    if form is not None:
        try:
            _require_form(student, model, file, form, tail)
        except RequestError as error:
            return Rehearsal(refusal=str(error))
    return Rehearsal(tuple(kernels), operators, failures=failures)


def _require_form(student: Student, model: onnx.ModelProto, file: Path, form: FileForm, tail: bytes | None) -> None:
    """Give a model the form of the network's file and what is behind the network; the model changes.

    Raises:
        RequestError: ONNX Runtime does not run the result.
    """
    import onnx

    from acq.export.engine import Engine
    from acq.export.form import in_form
    from acq.export.onnx_file import as_taken, with_tail

    in_form(model, form)
    onnx.save(model, file)
    if tail is None:
        Engine(file)
        return
    known = student.preprocessing
    assert known is not None
    scenes = normalised_scenes(form.batch or 1, known, torch.Generator().manual_seed(0))
    with_tail(file, model, tail, as_taken(scenes, known, False, form))
