"""Evaluate whatever can be evaluated: students, run folders, exported files and networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acq.analysis.normalisation import check_normalisation
from acq.api.files import engine, load
from acq.core.device import choose_device
from acq.core.evaluate import Classifier, Measured, accuracy
from acq.core.extras import require_onnx
from acq.core.outputs import Output
from acq.core.scores import Kind
from acq.core.settings import names_of
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.class_names import fitting
from acq.files.images import batches, read
from acq.network.constants import device_of
from acq.network.teacher import Teacher
from acq.network.trace import trace
from acq.quantization.student import Student
from acq.runs import student_file
from acq.runs.folder import require_run
from acq.zoo import preprocessing_of, resolve

if TYPE_CHECKING:
    from acq.export.engine import Engine


@dataclass(frozen=True)
class Target:
    """A classifier that can be evaluated.

    Attributes:
        network: Normalised images [N, C, H, W] to logits [N, L].
        preprocessing: Of its images.
        output: How the logits decide.
        model: Name of the network that it came from; empty where unknown.
        device: Where it runs.
        class_names: In class order; empty where they are not known.
    """

    network: Classifier
    preprocessing: Preprocessing
    output: Output
    model: str
    device: torch.device
    class_names: tuple[str, ...] = ()

    def accuracy(self, data: Path, limit: int | None = None) -> tuple[Measured, int]:
        """Accuracy on labelled images, and the number of images.

        Args:
            data: An ``.npz`` file or a folder of classes.
            limit: Evaluate only the first images.
        """
        images = read(data, preprocessing=self.preprocessing, output=self.output, limit=limit, names=self.class_names)
        return accuracy(self.network, batches(images, self.preprocessing), self.output, self.device), len(images)


def evaluate(
    network: nn.Module | str | Path,
    data: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    outputs: str | None = None,
    output_kinds: Sequence[Kind] = (),
    class_names: Sequence[str] = (),
    device: str = "auto",
) -> float:
    """Accuracy in percent on labelled images: top-1 of classes, the mean over labels, or mean IoU of a map.

    Args:
        network: A student, a run folder, a file of ``acq export``, the name of a network, or any classifier.
        data: An ``.npz`` file or a folder of classes.
        preprocessing: Of the network's images, in place of what is known of them; a classifier of your own needs it. An
            ONNX file that takes bytes has its own.
        limit: Evaluate only the first images.
        outputs: The names or indices of the tensors that decide, joined by commas, if a network returns several.
        output_kinds: How each decides, where that is not what its shape and its end say.
        class_names: In class order, by which folders of ``data`` may be named; by default as known.
        device: ``auto``, ``cpu`` or ``cuda``. A network in memory runs where it is.

    Raises:
        RequestError: The data does not fit the network, its preprocessing is not known, or the target does not exist.
    """
    found = target(
        network, preprocessing=preprocessing, outputs=outputs, output_kinds=output_kinds, class_names=class_names,
        device=device,
    )  # fmt: skip
    return found.accuracy(Path(data), limit)[0].percent


def target(
    network: nn.Module | str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    outputs: str | None = None,
    output_kinds: Sequence[Kind] = (),
    class_names: Sequence[str] = (),
    device: str = "auto",
    **options: Any,
) -> Target:
    """Find what a name or path stands for.

    Args:
        network: As for ``evaluate``.
        preprocessing: As for ``evaluate``.
        outputs: As for ``evaluate``.
        output_kinds: As for ``evaluate``.
        class_names: As for ``evaluate``.
        device: ``auto``, ``cpu`` or ``cuda``; ONNX files run on the CPU. A network in memory runs where it is.
        **options: Of ``acq.zoo.resolve``, for the name of a network alone.

    Raises:
        RequestError: The target does not exist, or its preprocessing is not known.
    """
    found = _found(network, preprocessing, outputs, output_kinds, device, options)
    return replace(found, class_names=fitting(class_names, found.class_names, found.output))


def _found(
    network: nn.Module | str | Path,
    preprocessing: Preprocessing | None,
    outputs: str | None,
    output_kinds: Sequence[Kind],
    device: str,
    options: dict[str, Any],
) -> Target:
    if isinstance(network, Student):
        if outputs is not None or output_kinds:
            raise RequestError("a student knows which of its outputs decide; leave out outputs and output_kinds")
        return _of_student(network, "", preprocessing, _place_of(network, device))
    if isinstance(network, nn.Module):
        if preprocessing is None:
            raise RequestError("the normalisation of this network's images is not known; give preprocessing")
        place = _place_of(network, device)
        teacher = Teacher(trace(network, preprocessing.input_size, outputs, output_kinds))
        return _of_teacher(teacher, preprocessing, "", place)
    path, place = Path(network), choose_device(device)
    is_file = path.suffix == ".onnx" and _is_own(path)
    framing = {name: options.get(name) for name in ("resize", "crop")}
    others = [value for name, value in options.items() if name not in framing]
    if (is_file or path.is_dir()) and any(value is not None for value in (outputs, output_kinds or None, *others)):
        kind = "a file of acq export" if is_file else "a run folder"
        raise RequestError(f"{network} is {kind}, which has its own weights and sizes; leave out the other options")
    if is_file:
        return _framed(_of_file(engine(path), network, preprocessing, device), **framing)
    if path.is_dir():
        require_run(path)
        described = student_file.load_description(path)
        model = str(described.facts.get("origin", {}).get("model", ""))
        found = _of_student(load(path).to(place), model, preprocessing, place)
        return _framed(replace(found, class_names=described.class_names), **framing)
    if preprocessing is not None:
        options |= {name: getattr(preprocessing, name) for name in ("input_size", "mean", "std")}
    named = resolve(str(network), outputs=names_of(outputs), **options)
    known = named.preprocessing
    if preprocessing is not None and preprocessing.framing is not None:
        known = replace(known, framing=preprocessing.framing)
    teacher = Teacher(trace(named.model, known.input_size, outputs, output_kinds))
    check_normalisation(teacher, known, given=named.preprocessing_given)
    return replace(_of_teacher(teacher, known, str(network), place), class_names=named.known_names)


def _place_of(network: nn.Module, device: str) -> torch.device:
    """Where a network in memory is, if that is the device asked for."""
    place = device_of(network)
    if device != "auto" and choose_device(device).type != place.type:
        raise RequestError(f"the network is on {place.type}; move it to {device} first, or leave out device")
    return place


def _framed(found: Target, resize: int | None, crop: int | None) -> Target:
    """A target whose pictures of another size are framed as given, or else as it knows."""
    known = found.preprocessing
    changed = preprocessing_of(known.input_size, known.mean, known.std, known, resize=resize, crop=crop)
    return replace(found, preprocessing=changed)


def _is_own(file: Path) -> bool:
    """Whether ``acq export`` wrote an ONNX file; others are networks like any."""
    require_onnx()
    from acq.files.screening import is_own

    return is_own(file)


def _of_teacher(teacher: Teacher, known: Preprocessing, model: str, device: torch.device) -> Target:
    return Target(teacher.to(device).logits, known, teacher.output, model, device)


def _of_student(student: Student, model: str, known: Preprocessing | None, device: torch.device) -> Target:
    known = known or student.preprocessing
    if known is None:
        raise RequestError("the normalisation of this student's images is not known; give preprocessing")
    return Target(student.logits, known, student.output, model, device)


def _of_file(file: Engine, path: str | Path, known: Preprocessing | None, device: str) -> Target:
    if device not in ("auto", "cpu"):
        raise RequestError(f"{path} runs on the CPU alone; leave out --device")
    known = known or file.preprocessing
    if known is None:
        raise RequestError(f"{path} does not say how its images are normalised; export it from a run folder")
    return Target(file, known, file.answer.output, file.model, torch.device("cpu"), file.class_names)
