"""The forms in which ``architectures.py`` takes a network, and what is measured of each."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import Architecture
from torch import Tensor, nn

from acq import zoo
from acq.config import Config
from acq.core.outputs import Output
from acq.core.settings import names_of
from acq.core.structures import flattened
from acq.core.values import Preprocessing
from acq.export.engine import Engine
from acq.recipe import Request, quantize
from acq.runs.names import MODEL
from acq.runs.session import Session

BITS = "w8a8"
# the images are scenes, and weights are rounded and not trained
SETTINGS: dict[str, Any] = {
    "generator": {"steps": 0}, "images": {"steps": 0, "count": 32}, "student": {"steps": 0}, "device": "cpu",
}  # fmt: skip


class ExporterError(Exception):
    """torch cannot write the network as a file, so there is nothing to take."""


@dataclass(frozen=True)
class Form:
    """A way in which a network is given.

    Attributes:
        name: In rows.
        title: On the page.
        dynamo: Whether torch's exporter by ``torch.export`` writes the file, or the older one; None for a module.
        folded: Whether the exporter folds batch norms and takes one image, as both do by default.
    """

    name: str
    title: str
    dynamo: bool | None = None
    folded: bool = True


FORMS = (
    Form("module", "module"),
    Form("dynamo", "dynamo, folded", True),
    Form("dynamo-kept", "dynamo, kept", True, False),
    Form("script", "TorchScript, folded", False),
    Form("script-kept", "TorchScript, kept", False, False),
)


def export(network: nn.Module, path: Path, size: tuple[int, int, int], form: Form) -> Path:
    """Write a network as an ONNX file.

    Raises:
        ExporterError: torch cannot.
    """
    images = torch.zeros(1 if form.folded else 2, *size)
    options: dict[str, Any] = {"input_names": ["images"], "dynamo": form.dynamo}
    if form.dynamo:
        options |= {"optimize": form.folded, "verbose": False}
        options |= {} if form.folded else {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    elif not form.folded:
        kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
        options |= {"dynamic_axes": {"images": {0: "batch"}}, **kept}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            torch.onnx.export(network, (images,), str(path), **options)
        except Exception as error:
            raise ExporterError(str(error)) from error
    return path


def measured(
    network: nn.Module, architecture: Architecture, form: Form, known: Preprocessing, images: Tensor, folder: Path
) -> dict[str, Any]:
    """Quantize a network in a form, and compare student and file with it.

    Args:
        network: In eval mode.
        architecture: What it is.
        form: The form.
        known: Its preprocessing.
        images: Normalised images [N, C, H, W] for the comparison.
        folder: For files.

    Returns:
        A row's figures.
    """
    given = _given(network, architecture, form, known, folder)
    with torch.no_grad():
        wanted = [value.float() for value in flattened(network(images))[1]]
    asked = {"bits": BITS, "outputs": _outputs(architecture, given)}
    kinds = {} if architecture.kind is None else {"output_kind": architecture.kind}
    config = Config.create("default", SETTINGS, asked, kinds)
    result = quantize(Request.of(given, config, {"model": given.name}), Session(folder / "run"))
    assert result.exported is not None
    student, parity, engine = result.student, result.exported.parity, Engine(folder / "run" / MODEL)
    answer, output = engine.answer, engine.answer.output
    rows = answer.logits(wanted)
    with torch.no_grad():
        own = answer.logits([value.float() for value in student.returned(images)])
    parts = images.split(engine.batch or len(images))
    found = torch.cat([engine(part) for part in parts])
    return {
        "kind": output.kind,
        "meaning": str(output),
        "placement": student.plan.placement,
        "student": _compared(output, own, rows),
        "file": _compared(output, found, rows),
        "integer": parity.integer,
        "layers": parity.layers,
        "openvino": None if parity.openvino is None else [parity.openvino.integer, parity.openvino.layers],
        "floating": dict(Counter(_short(node.operator) for node in student.plan.float_nodes)),
        "missed": dict(Counter(_short(node.operator) for node in student.plan.missed_nodes)),
    }


def _given(
    network: nn.Module, architecture: Architecture, form: Form, known: Preprocessing, folder: Path
) -> zoo.Network:
    if form.dynamo is None:
        return zoo.Network(network, known, architecture.name, True)
    file = export(network, folder / "network.onnx", architecture.size, form)
    return zoo.resolve(str(file), mean=known.mean, std=known.std, input_size=known.input_size)


def _outputs(architecture: Architecture, given: zoo.Network) -> str | None:
    """Which outputs decide: all of a file, whose names are its own, where all of the module do."""
    if architecture.outputs is None or given.form is None:
        return architecture.outputs
    names = list(given.form.outputs)
    assert len(names) == len(names_of(architecture.outputs))
    return ",".join(names)


def _short(operator: str) -> str:
    """The name of an operator without its overload."""
    return operator.removeprefix("aten.").split(".")[0]


def _compared(output: Output, found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Agreement in percent (of values a hundred times the cosine), and what images have in common over the error."""
    lively = (wanted - wanted.mean(0)).square().sum()
    error = (found - wanted).square().sum().clamp_min(1e-20)
    same = 100 * output.same(found, wanted).mean().item()
    return {"agreement": round(same, 2), "decibels": round(10 * torch.log10(lively / error).item(), 1)}
