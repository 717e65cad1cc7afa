"""Compares an exported file with its student: what both return, and the kernels that engines choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor

from acq.core.evaluate import evaluating
from acq.core.outputs import is_cosine
from acq.errors import RequestError
from acq.export.answers import FileAnswer
from acq.export.engine import Engine
from acq.export.engines import REFERENCE, installed_engines
from acq.network.constants import device_of
from acq.quantization.student import Student

_BATCH = 32
LEAST_AGREEMENT = 99.0  # percent of decisions
LEAST_COSINE = 99.9  # times 100: noise of 27 dB below the values
_DOUBT = 1e-3  # below this chance a file is taken to agree less often than on the least agreement
EQUAL_WITHIN = 1e-4  # of an output's largest value: differences of float rounding
_ROUNDING = 1e-5  # of an image's values: about what engines' floats differ by
_LOWEST = 50.0  # no file may agree less often, however unsteady its student is


@dataclass(frozen=True)
class Match:
    """What a file returns compared with what its student returns.

    Attributes:
        agreement: Images with the same top-1 class, or labels, cells or steps with the same answer, in percent. Of
            values it is a hundred times the mean cosine.
        equal: Images whose values are all equal within 1e-4 of their output's largest value, in percent.
        difference: The largest absolute difference of a value.
    """

    agreement: float
    equal: float
    difference: float


@dataclass(frozen=True)
class EngineMatch:
    """A file compared with its student on an engine.

    Attributes:
        match: What the file returns.
        integer: Layers on integer kernels.
        layers: All layers of the engine's graph.
    """

    match: Match
    integer: int
    layers: int


@dataclass(frozen=True)
class Parity:
    """A file compared with its student.

    Attributes:
        images: Number of images.
        kind: Of the output (``acq.core.outputs.Output.kind``).
        plain: ONNX Runtime without graph optimisations: the file's own meaning, in floating point.
        engines: The comparison on each installed engine, by its name (``acq.export.engines``).
        failures: Why an engine cannot run the file, by its name.
        self_agreement: How far the student agrees with itself if noise of 1e-5 of each value is on the images, in the
            unit of ``Match.agreement`` (this project's definition). Engines round the floats between quantizers
            differently. So values at the border of two levels fall to either side, and the next layers amplify that.
            None where the file agrees without that excuse.
    """

    images: int
    kind: str
    plain: Match
    engines: Mapping[str, EngineMatch]
    failures: Mapping[str, str]
    self_agreement: float | None = None

    @property
    def optimised(self) -> Match:
        """ONNX Runtime with graph optimisations, on integer kernels."""
        return self.engines[REFERENCE].match

    @property
    def integer(self) -> int:
        """Layers on integer kernels of ONNX Runtime."""
        return self.engines[REFERENCE].integer

    @property
    def layers(self) -> int:
        """All layers of ONNX Runtime's graph."""
        return self.engines[REFERENCE].layers

    @property
    def openvino(self) -> EngineMatch | None:
        """The comparison on OpenVINO, if it is installed and runs the file."""
        return self.engines.get("openvino")

    @property
    def least(self) -> float:
        """What a file must reach, in the unit of ``Match.agreement``: the bar, less what the student itself misses."""
        bar = LEAST_COSINE if is_cosine(self.kind) else LEAST_AGREEMENT
        return bar if self.self_agreement is None else max(bar - (100 - self.self_agreement), _LOWEST)

    @property
    def bar(self) -> str:
        """``least`` in words."""
        return f"{self.least / 100:.4g}" if is_cosine(self.kind) else f"{self.least:.4g} %"

    def agrees(self, match: Match) -> bool:
        """Whether decisions agree on 99 % of images, as far as so many can tell; or values by a cosine of 0.999.

        Where the student does not agree with itself (``self_agreement``), the bar is lower by as much.
        """
        if is_cosine(self.kind):
            return match.agreement >= self.least
        differing = round(self.images * (1 - match.agreement / 100))
        return chance_of(differing, self.images, 1 - self.least / 100) > _DOUBT


def check(file: Path, student: Student, images: Tensor) -> Parity:
    """Compare a file with its student on every installed engine.

    Args:
        file: The ONNX file.
        student: The student that it was exported from.
        images: Normalised images [N, C, H, W].

    Returns:
        The comparison.

    Raises:
        onnx.checker.ValidationError: The file is not valid ONNX.
        RequestError: ONNX Runtime does not run it.
    """
    onnx.checker.check_model(str(file), full_check=True)
    entrance = Engine(file, "ORT_DISABLE_ALL")
    parts = _parts(images.cpu(), entrance.batch)
    wanted = _returned(student, parts)
    inputs = [entrance.input_for(part) for part in parts]
    plain = _match(list(map(entrance.run, inputs)), wanted, entrance.answer)
    found: dict[str, EngineMatch] = {}
    failures: dict[str, str] = {}
    for name, kind in installed_engines().items():
        try:
            opened = kind.open(file)
            match = _match(list(map(opened.run, inputs)), wanted, entrance.answer)
        except RequestError as error:
            if name == REFERENCE:
                raise
            failures[name] = str(error)
        else:
            found[name] = EngineMatch(match, opened.kernels.integer, opened.kernels.layers)
    parity = Parity(sum(map(len, parts)), student.output.kind, plain, found, failures)
    if all(map(parity.agrees, (plain, *(engine.match for engine in found.values())))):
        return parity
    rng = torch.Generator().manual_seed(0)
    noisy = [part * (1 + _ROUNDING * torch.randn(part.shape, generator=rng)) for part in parts]
    return replace(parity, self_agreement=_match(_returned(student, noisy), wanted, entrance.answer).agreement)


def _returned(student: Student, parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """What a student returns for each batch: one tensor per output."""
    device = device_of(student)
    with evaluating(student):
        return [[value.cpu() for value in student.returned(part.to(device))] for part in parts]


def _parts(images: Tensor, size: int | None) -> list[Tensor]:
    """Images in batches; whole ones of a size that is fixed."""
    if size is not None:
        images = images.repeat(-(-size // len(images)), 1, 1, 1)
        images = images[: len(images) // size * size]
    return list(images.split(size or _BATCH))  # type: ignore[no-untyped-call]


def chance_of(differing: int, images: int, share: float) -> float:
    """The chance of at least so many differing images if each differs with probability ``share``: a binomial tail."""
    fewer = sum(
        math.exp(_log_choices(images, k) + k * math.log(share) + (images - k) * math.log1p(-share))
        for k in range(differing)
    )
    return 1 - fewer


def _log_choices(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _match(found: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]], answer: FileAnswer) -> Match:
    """Compare what a file and its student return for each batch: one tensor per output."""
    both = list(zip(found, wanted, strict=True))
    differences, equal = [], []
    for place in (place for place, value in enumerate(wanted[0]) if value.numel()):
        largest = max(float(batch[place].float().abs().max()) for batch in wanted)
        apart = torch.cat([_apart(one[place], other[place], len(answer.logits(other))) for one, other in both])
        differences.append(apart)
        equal.append(apart <= EQUAL_WITHIN * largest)
    same = torch.cat([answer.output.same(*map(answer.logits, pair)) for pair in both])
    whole = torch.stack(equal).all(0)
    return Match(100 * same.mean().item(), 100 * whole.float().mean().item(), torch.stack(differences).max().item())


def _apart(found: Tensor, wanted: Tensor, images: int) -> Tensor:
    """The largest difference of each image's values [N]; of all, where an output is not made of one per image."""
    if found.numel() != wanted.numel():
        raise RequestError(f"the file returns {list(found.shape)} where the student returns {list(wanted.shape)}")
    difference = (found.float().reshape(wanted.shape) - wanted.float()).abs()
    if wanted.dim() and len(wanted) == images:
        return difference.reshape(images, -1).amax(1)
    return difference.max().expand(images)
