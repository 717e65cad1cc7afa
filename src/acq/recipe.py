"""The story: read a trained network, make synthetic images, quantize the network on them, keep the result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import fx, nn

from acq.analysis.normalisation import check_normalisation, tell_what_is_missing
from acq.config import Config
from acq.core.device import choose_device
from acq.core.file_form import FileForm
from acq.core.processes import ALONE, Processes
from acq.core.settings import number_or
from acq.core.values import Preprocessing
from acq.files.class_names import NAMES, fitting
from acq.files.images import read
from acq.network.teacher import Teacher
from acq.network.trace import trace, weights_hash
from acq.quantization.build import build
from acq.quantization.placement import placement_of
from acq.quantization.plan import plan
from acq.quantization.student import Student
from acq.runs.names import TAIL
from acq.runs.rehearsal import Rehearsal, rehearse
from acq.runs.session import Session
from acq.runs.student_format import PreprocessingEntry
from acq.runs.summary import measure
from acq.synthesis.condition import ConditionSampler, usual_answers
from acq.synthesis.generators import make_generator
from acq.synthesis.pictures import reads
from acq.training.automatic_bits import automatic_bits
from acq.training.calibration import Calibration
from acq.training.context import Context
from acq.training.conversion import Conversion
from acq.training.distillation import Distillation
from acq.training.few_images import FewImages
from acq.training.first_student import FirstStudent
from acq.training.generator import GeneratorTraining
from acq.training.images import ImageRefinement
from acq.training.loop import Training
from acq.training.phase import Phase
from acq.zoo import Network

if TYPE_CHECKING:
    from acq.export.onnx_file import Exported


@dataclass(frozen=True)
class Request:
    """A network, the normalisation of its images, how to quantize it, and where it came from, as JSON values.

    ``kept`` is the content of more files of the run folder, by name.
    ``normalisation_given`` is False where the normalisation is only a guess. ``class_names`` are given in class
    order, ``known_names`` count where none are given and they fit; both may be empty.
    """

    model: nn.Module
    preprocessing: Preprocessing
    config: Config
    origin: Mapping[str, Any]
    kept: Mapping[str, bytes] = field(default_factory=dict)
    normalisation_given: bool = True
    class_names: tuple[str, ...] = ()
    known_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Network, config: Config, origin: Mapping[str, Any]) -> Self:
        """The request for a network that ``acq.zoo.resolve`` found."""
        form = {} if network.form is None else {"form": network.form.facts()}
        kept = {} if network.tail is None else {TAIL: network.tail}
        return cls(
            network.model, network.preprocessing, config, {**origin, **form}, kept, network.preprocessing_given,
            network.class_names, network.known_names,
        )  # fmt: skip

    def rehearsal_of(self, student: Student, *, export: bool) -> Rehearsal:
        """What an untrained student becomes in a file (``acq.runs.rehearsal``)."""
        facts = self.origin.get("form")
        form = None if facts is None else FileForm.read(facts)
        return rehearse(student, self.preprocessing, export=export, form=form, tail=self.kept.get(TAIL))


@dataclass(frozen=True)
class Result:
    """The student, the figures of its run, and the run folder (None if none was asked for).

    ``exported`` is the ONNX file with its comparison; None where no file was written.
    """

    student: Student
    summary: dict[str, Any]
    folder: Path | None
    exported: Exported | None = None


@dataclass(frozen=True)
class Prepared:
    """A run before its first step; ``config``, ``graph`` and ``class_names`` are what it really uses."""

    config: Config
    graph: fx.GraphModule
    training: Training
    class_names: tuple[str, ...]


def prepare(request: Request, processes: Processes = ALONE) -> Prepared:
    """Trace the network, plan the student and line up the phases; RequestError where the network lacks something."""
    clock, known, asked = time.perf_counter(), request.preprocessing, request.config
    device = choose_device(asked.device)
    graph = trace(request.model, known.input_size, asked.outputs, asked.output_kind)
    placement, teacher = placement_of(graph, asked.placement), Teacher(graph).to(device)
    names = fitting(request.class_names, request.known_names, teacher.output)
    reading = asked.images.strokes == "auto" and reads(teacher, known, device)
    traits = replace(teacher.structure.traits, reads=reading, pixels=math.prod(known.input_size[1:]))
    config = asked.placed(placement).fitted(traits)
    check_normalisation(teacher, known, given=request.normalisation_given)
    tell_what_is_missing(teacher)
    if config.budget is not None:
        chosen = automatic_bits(graph, known, config.format, placement, config.layers, config.budget)
        config = config.with_layers(chosen)
    student = build(graph, plan(graph, config.format, placement, config.layers), known)
    made, whole = config.generator, teacher.output.whole
    answers = 1 if whole is None else whole.answers
    generator = make_generator(
        made.kind, known, answers, rows=teacher.answer_rows(), noise_dim=made.noise_dim, width=made.width,
        seed=config.seed,
    )  # fmt: skip
    context = Context(
        teacher, generator.to(device) if made.steps else None, student.to(device), known,
        ConditionSampler(made.noise_dim, teacher.output, made.centre_std, usual_answers(teacher, known, device)),
        torch.Generator(device).manual_seed(config.seed), number_or(config.images.strokes, 0.0),
        config.precision == "mixed", processes,
    )  # fmt: skip
    scenes_stay = not made.steps and not config.images.steps
    begins = config.calibration.first_student and not scenes_stay
    may_stop = begins and config.calibration.enough and config.images.steps
    phases: list[Phase] = [
        *([FirstStudent(config.calibration, config.format.weight, context)] if begins else []),
        *([FewImages(config.images, config.calibration, config.student, context)] if may_stop else []),
        *([GeneratorTraining(made, context)] if made.steps else []),
        ImageRefinement(config.images, context),
        Calibration(config.calibration, context),
        Distillation(config.student, context),
        Conversion(config.student, context),
    ]
    return Prepared(config, graph, Training(context, phases, time.perf_counter() - clock), names)


def quantize(request: Request, session: Session, data: Path | None = None) -> Result:
    """Quantize ``request.model`` without its data. Labelled images at ``data`` only report accuracy, at the end.

    A finished run that is resumed returns what its folder holds. Of several processes only the main one has a summary.
    """
    prepared = prepare(request, session.processes)
    config, training, known = prepared.config, prepared.training, request.preprocessing
    teacher, main = training.context.teacher, session.processes.is_main
    if main:
        session.require(request.rehearsal_of(training.context.student, export=session.exports))
    labelled = None
    if data is not None and main:
        labelled = read(data, preprocessing=known, output=teacher.output, names=prepared.class_names)
    record = {
        "origin": dict(request.origin),
        "teacher": weights_hash(teacher),
        "preprocessing": PreprocessingEntry.of(known).model_dump(mode="json", exclude_none=True),
        "config": config.model_dump(mode="json"),
    }
    with session.opened(record, training) as run:
        if run.is_finished:
            return Result(*run.read_again(labelled), session.out)
        run.train()
        student = training.context.student.eval()
        if not main:
            return Result(student, {}, None)
        figures, diagnostics = measure(training, prepared.graph, labelled)
        summary = {"model": request.origin.get("model"), **config.headline(), **figures}
        run.keep({**record, NAMES: list(prepared.class_names)}, summary, diagnostics, request.kept)
        exported = run.export()
    return Result(student, summary, session.out, exported)
