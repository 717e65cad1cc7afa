"""Every number that a run can be told, in one frozen tree; unknown keys are errors. Ends at ``acq.recipe``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acq.errors import RequestError, nearest

Preset = Literal["fast", "default", "best", "gdfq"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["full", "mixed"]


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Weights(Section):
    """Weights of losses; 0 switches one off, but not all may be."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("at least one loss must have a weight above 0")
        return self


class GeneratorLosses(Weights):
    """Weights of the generator's losses. Formulas: ``acq.synthesis.losses``."""

    classes: float = Field(1.0, ge=0)
    statistics: float = Field(10.0, ge=0)
    statistics_plain: float = Field(0.0, ge=0)
    centre: float = Field(60.0, ge=0)
    paired: float = Field(5.0, ge=0)
    consistency: float = Field(0.3, ge=0)


class Generator(Section):
    """The generator and its warm-up."""

    kind: str = "canvas"
    noise_dim: int = Field(64, ge=1)
    width: int = Field(128, ge=1, description="channels at the lowest resolution")
    steps: int = Field(500, ge=1)
    batch: int | None = Field(
        None, ge=4, multiple_of=2, description="images a step, in pairs of one condition; by default up to 64"
    )
    learning_rate: float = Field(1e-3, gt=0)
    spread: float = Field(0.15, ge=0, le=1, description="standard deviation of requested centres")
    consistency_every: int = Field(5, ge=1, description="steps between two of the consistency loss, times as heavy")
    losses: GeneratorLosses = GeneratorLosses()


class ImageLosses(Weights):
    """Weights of the losses that finish images. Formulas: ``acq.synthesis.losses``."""

    classes: float = Field(0.3, ge=0)
    statistics: float = Field(10.0, ge=0)
    statistics_plain: float = Field(0.0, ge=0)
    centre: float = Field(20.0, ge=0)
    paired: float = Field(0.0, ge=0)
    consistency: float = Field(0.0, ge=0)


class Images(Section):
    """The synthetic images that are kept: how many, how they are finished, and how often some are replaced."""

    count: int | None = Field(
        None, ge=16, multiple_of=2, description="by default up to 512, ten megapixels together at most"
    )
    batch: int | None = Field(
        None, ge=4, multiple_of=2, description="images that are finished together; by default up to 256"
    )
    steps: int = Field(100, ge=0, description="steps a batch; 0 takes images as the generator makes them")
    learning_rate: float = Field(0.1, gt=0, description="of the logits of pixels, at its highest")
    scene: float = Field(0.5, ge=0, le=1, description="share of a procedural scene in where an image begins")
    renew_every: int = Field(20, ge=1, description="student steps between renewals")
    renew_count: int = Field(0, ge=0, description="images a renewal, as the generator makes them")
    losses: ImageLosses = ImageLosses()


class StudentLosses(Weights):
    """Weights of the student's losses. Formulas: ``acq.training.losses``."""

    logits: float = Field(1.0, ge=0)
    probabilities: float = Field(0.0, ge=0)
    features: float = Field(4.0, ge=0)


class Student(Section):
    """Calibration and training of the quantized network."""

    calibration_images: int = Field(
        1024, ge=1, description="at most; where the images are fewer, a view of each is taken too"
    )
    equalization: bool | None = Field(
        None,
        description="scale the channels of what layers read in few bits, so that each uses more of the levels; by "
        "default where no convolution is depthwise, where nothing came of it",
    )
    rounding: bool = Field(True, description="round layers one after the other, each making up for those before")
    steps: int | None = Field(
        None,
        ge=0,
        description="by default 600 (fast 200, best 4000); none where convolutions are depthwise, which lost by it",
    )
    batch: int | None = Field(None, ge=1, description="images a step; by default up to 64")
    learning_rate: float = Field(
        0.025, gt=0, description="of weights and biases, in mean steps of their layer's grid, at its highest"
    )
    scale_learning_rate: float = Field(
        0.0075, gt=0, description="of scales, in steps by which the end of the range moves, at its highest"
    )
    augment: float = Field(
        1.0, ge=0, le=1, description="share of a batch that is moved, mirrored, blended, pasted into"
    )
    losses: StudentLosses = StudentLosses()


class Config(Section):
    """One run's settings; ``Config.create`` makes it from a preset and what differs from it."""

    preset: Preset = "default"
    bits: str = "w4a4"
    budget: float | None = Field(
        None, ge=2, le=8, description="mean bits of weights where bits are auto, the ends' apart; by default 4"
    )
    ends: Literal["same"] | int = 8
    addends: Literal["same"] | int = 8
    reduce_range: bool = Field(True, description="keep weights of 8 bits to 7 bits' range, for CPUs without VNNI")
    layers: dict[str, int] = Field(
        {}, description="bits of single layers' weights, by node as `acq inspect` names them"
    )
    binary_scales: bool = Field(
        True, description="powers of two as scales where activations have 8 bits, so that engines round alike"
    )
    placement: Literal["deployable", "relu-only"] = "deployable"
    seed: int = Field(0, ge=0, lt=2**63)
    device: Device = "auto"
    precision: Precision = Field(
        "full", description="of the teacher and the generator while images are made; mixed: bfloat16 products, on GPUs"
    )
    generator: Generator = Generator()
    images: Images = Images()
    student: Student = Student()

    @classmethod
    def create(cls, preset: str = "default", *changes: Mapping[str, Any]) -> Config:
        """The preset with ``changes`` (nested mappings) laid over it, the later over the earlier.

        Raises:
            RequestError: the preset or a key is not known, or a value is out of range; the nearest known name is
                given.
        """
        for change in changes:
            preset = str(change.get("preset", preset))
        if preset not in get_args(Preset):
            raise RequestError(
                f"preset {preset!r} is not known{nearest(preset, get_args(Preset))}; "
                f"give one of {', '.join(get_args(Preset))}"
            )
        values: dict[str, Any] = {}
        for change in changes:
            values = _laid_over(values, change)
        below = PRESETS[_pace(preset, values.get("bits"))]
        values = _laid_over(_laid_over(below, values), {"preset": preset})
        try:
            return cls.model_validate(values)._spelled_out()
        except ValidationError as error:
            raise RequestError(_first_problem(error)) from error

    def fitted(self, input_size: tuple[int, int, int], *, depthwise: bool = False) -> Self:
        """The settings with what was left open filled in, for ``input_size`` (C, H, W) and the kind of network.

        Of images the usual number, or as many as have a megapixel together (ten for those that are kept) where that is
        fewer: memory and time are bounded at any image size. Of student steps the preset's, none for a ``depthwise``
        network: its rounded student is the best that was found (docs/notes/2026-11-24-imagenet.md).
        """
        _, height, width = input_size
        together = max(4, _PIXELS_AT_ONCE // (height * width) // 2 * 2)
        kept = max(16, _PIXELS_KEPT // (height * width) // 2 * 2)
        filled: dict[str, dict[str, int]] = {
            name: {"batch": getattr(self, name).batch or min(usual, together)} for name, usual in _USUAL_BATCHES.items()
        }
        filled["images"]["count"] = self.images.count or min(_USUAL_COUNT, kept)
        if self.student.equalization is None:
            filled["student"]["equalization"] = not depthwise
        if self.student.steps is None:
            filled["student"]["steps"] = 0 if depthwise else _USUAL_STEPS[_pace(self.preset, self.bits)]
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in filled.items()}
        )

    @property
    def automatic(self) -> bool:
        """Whether layers get bits of their own, from what each costs."""
        return "auto" in self.bits

    def _spelled_out(self) -> Self:
        bits = self.bits.strip().lower()
        bits = "wautoa4" if bits == "auto" else bits
        if self.budget is not None and "auto" not in bits:
            raise RequestError(f"a budget is for bits that are chosen; give bits auto, not {self.bits}, or no budget")
        budget = (self.budget or _USUAL_BUDGET) if "auto" in bits else None
        return self.model_copy(update={"bits": bits, "budget": budget})

    def to_yaml(self) -> str:
        """The whole tree as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


_USUAL_BATCHES = {"generator": 64, "images": 256, "student": 64}
_USUAL_COUNT = 512
_USUAL_BUDGET = 4.0
_USUAL_STEPS: dict[Preset, int] = {"default": 600, "fast": 200, "best": 4000, "gdfq": 600}
_PIXELS_AT_ONCE, _PIXELS_KEPT = 1 << 20, 10 << 20
_EASY_BITS = 7  # from here on the default preset takes no more steps than the fast one: calibration does most

# one line a preset: what differs from the defaults above
PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "fast": {"generator": {"steps": 200}, "images": {"count": 256, "steps": 60}},
    "best": {"generator": {"steps": 1500}, "images": {"count": 2048, "steps": 200}},
    "gdfq": {
        "generator": {"spread": 0.0, "losses": {"centre": 0.0, "paired": 0.0, "consistency": 0.0}},
        "images": {"count": 4096, "steps": 0, "renew_count": 128},
    },
}


def _laid_over(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _pace(preset: Any, bits: Any) -> Preset:
    """The preset whose steps are taken: wide formats take no more than the fast one's."""
    found: Preset = "fast" if preset == "default" and _narrowest(bits) >= _EASY_BITS else preset
    return found


def _narrowest(bits: Any) -> int:
    """The smallest number in a text such as ``w4a8``; 0 if some are chosen, or if it is no such text, which the plan
    then refuses."""
    found = [0 if width == "auto" else int(width) for width in re.findall(r"[0-9]+|auto", str(bits).lower())]
    return min(found, default=0)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    if path[0] in ("ends", "addends"):  # either of two kinds, which the error would name as if they were keys
        return f"setting {path[0]!r}: give a bit-width such as 8, or same, got {problem['input']!r}"
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        hint = nearest(path[-1], known) or f"; known here: {', '.join(known)}"
        return f"setting {key!r} is not known{hint}"
    return f"setting {key!r}: {problem['msg'].lower()}, got {problem['input']!r}"


def _fields(path: Iterable[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return list(section.model_fields)
