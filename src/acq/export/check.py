"""Compares an exported file with its student: logits, and the kernels that engines choose."""

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
from acq.core.outputs import Output
from acq.export.engine import Engine
from acq.export.openvino_engine import OpenVINO
from acq.quantization.student import Student

# operators of an optimised graph: layers on integer kernels, and layers in floating point
_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"}
_FLOATING = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}
_BATCH = 32
EQUAL_WITHIN = 1e-4  # of the largest logit: differences of float rounding


@dataclass(frozen=True)
class Match:
    """Logits of a file compared with those of its student.

    Attributes:
        agreement: Images with the same top-1 class, in percent.
        equal: Images whose logits are all equal within 1e-4 of the largest logit, in percent.
        difference: The largest absolute difference of a logit.
    """

    agreement: float
    equal: float
    difference: float


@dataclass(frozen=True)
class EngineMatch:
    """A file compared with its student on another engine.

    Attributes:
        match: The logits.
        integer: Layers on integer kernels.
        layers: All layers.
    """

    match: Match
    integer: int
    layers: int


@dataclass(frozen=True)
class Parity:
    """A file compared with its student.

    Attributes:
        images: Number of images.
        plain: ONNX Runtime without graph optimisations: the file's own meaning, in floating point.
        optimised: ONNX Runtime with graph optimisations, on integer kernels.
        integer: Layers on integer kernels in the optimised graph.
        layers: All layers of the optimised graph.
        openvino: OpenVINO, if it is installed.
    """

    images: int
    plain: Match
    optimised: Match
    integer: int
    layers: int
    openvino: EngineMatch | None


def check(file: Path, student: Student, images: Tensor) -> Parity:
    """Compare a file with its student.

    Args:
        file: The ONNX file.
        student: The student that it was exported from.
        images: Normalised images [N, C, H, W].

    Returns:
        The comparison.

    Raises:
        onnx.checker.ValidationError: The file is not valid ONNX.
        RequestError: An engine does not run it.
    """
    onnx.checker.check_model(str(file), full_check=True)
    device, images = next(student.parameters()).device, images.cpu()
    with evaluating(student):
        answers = [student(part.to(device)).cpu() for part in images.split(_BATCH)]  # type: ignore[no-untyped-call]
    logits = torch.cat(answers)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "optimised.onnx"
        engine = Engine(file)
        plain = _match(Engine(file, "ORT_DISABLE_ALL"), images, logits, student.output)
        optimised = _match(engine, images, logits, student.output)
        Engine(file, "ORT_ENABLE_EXTENDED", optimised=graph)  # graphs of higher levels fit one machine only
        kinds = Counter(node.op_type for node in onnx.load(str(graph)).graph.node)
    openvino = None
    if importlib.util.find_spec("openvino"):
        other = OpenVINO(file)
        match = _match(lambda part: other.run(engine.input_for(part)), images, logits, student.output)
        openvino = EngineMatch(match, other.integer, other.layers)
    integer, floating = (sum(kinds[kind] for kind in group) for group in (_INTEGER, _FLOATING))
    return Parity(len(images), plain, optimised, integer, integer + floating, openvino)


def _match(classify: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, output: Output) -> Match:
    found = torch.cat([classify(part) for part in images.split(_BATCH)])  # type: ignore[no-untyped-call]
    difference = (found - logits).abs().amax(1)
    equal = difference <= EQUAL_WITHIN * logits.abs().max()
    same = output.same(found, logits)
    return Match(100 * same.mean().item(), 100 * equal.float().mean().item(), difference.max().item())
