"""Does the file give what the student gives, and on which kernels?"""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.export.engine import Engine
from acq.export.openvino_engine import OpenVINO
from acq.quantization.student import Student

# kinds of operators in an optimised graph: layers on integer kernels, and layers that stayed in floating point
_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"}
_FLOATING = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}
_BATCH = 32


@dataclass(frozen=True)
class Match:
    """Logits of a file against those of the student that it was written from.

    ``agreement`` is the share of images of one top-1 class in percent, ``equal`` the share whose logits are all equal
    but for float rounding (within 1e-4 of the largest), ``difference`` the largest one of a logit.
    """

    agreement: float
    equal: float
    difference: float


@dataclass(frozen=True)
class Elsewhere:
    """A file against its student on another engine; of its ``layers`` there, ``integer`` run on integer kernels."""

    match: Match
    integer: int
    layers: int


@dataclass(frozen=True)
class Parity:
    """A file against its student on ``images`` images, on ONNX Runtime with its optimisations off and on.

    ``plain`` is the file's own meaning in floating point, ``optimised`` what integer kernels make of it; of that
    graph's ``layers``, ``integer`` run on such. ``openvino`` is None where the extra is not installed.
    """

    images: int
    plain: Match
    optimised: Match
    integer: int
    layers: int
    openvino: Elsewhere | None


def check(file: Path, student: Student, images: Tensor) -> Parity:
    """Compare ``file`` with ``student`` on normalised ``images`` [N, C, H, W].

    Raises:
        onnx.checker.ValidationError: the file is no valid ONNX.
        RequestError: the engine does not run it.
    """
    onnx.checker.check_model(str(file), full_check=True)
    device, images = next(student.parameters()).device, images.cpu()
    with evaluating(student):
        answers = [student(part.to(device)).cpu() for part in images.split(_BATCH)]  # type: ignore[no-untyped-call]
    wanted = torch.cat(answers)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "optimised.onnx"
        engine = Engine(file)
        plain = _match(Engine(file, "ORT_DISABLE_ALL"), images, wanted)
        optimised = _match(engine, images, wanted)
        Engine(file, "ORT_ENABLE_EXTENDED", optimised=graph)  # beyond this level a graph is one machine's
        kinds = Counter(node.op_type for node in onnx.load(str(graph)).graph.node)
    elsewhere = None
    if importlib.util.find_spec("openvino"):
        other = OpenVINO(file)
        match = _match(lambda part: other.run(engine.fed(part)), images, wanted)
        elsewhere = Elsewhere(match, other.integer, other.layers)
    integer, floating = (sum(kinds[kind] for kind in group) for group in (_INTEGER, _FLOATING))
    return Parity(len(images), plain, optimised, integer, integer + floating, elsewhere)


def _match(classify: Callable[[Tensor], Tensor], images: Tensor, wanted: Tensor) -> Match:
    found = torch.cat([classify(part) for part in images.split(_BATCH)])  # type: ignore[no-untyped-call]
    apart = (found - wanted).abs().amax(1)
    equal = apart <= 1e-4 * wanted.abs().max()
    same = found.argmax(1) == wanted.argmax(1)
    return Match(100 * same.float().mean().item(), 100 * equal.float().mean().item(), apart.max().item())
