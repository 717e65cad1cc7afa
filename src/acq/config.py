"""All settings of a run in one frozen tree. Phases define their sections; this file composes them and the presets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from acq.core.device import Device
from acq.core.outputs import Traits
from acq.core.scores import Kind
from acq.core.settings import Section, names_of
from acq.errors import RequestError, nearest
from acq.presets import AS_GENERATED, PRESETS, Preset, preset_values
from acq.quantization.formats import FULL_BITS, NumberFormat
from acq.quantization.node_plan import Placement
from acq.quantization.placement import PlacementSetting
from acq.quantization.roles import LayerWidth
from acq.training.calibration import CalibrationSettings
from acq.training.distillation import StudentSettings
from acq.training.generator import GeneratorSettings
from acq.training.images import ImageSettings

Same = Literal["same"]

_USUAL_BUDGET = 4.0  # mean bits of weights
_NARROWEST_WEIGHTS = 4  # bits that networks with attention are known to bear
_AUTOMATIC = "wautoa4"  # what the bits "auto" mean
_NAMES = BeforeValidator(lambda value: names_of(value) if value is None or isinstance(value, str) else value)


class Config(Section):
    """The settings of one run. ``Config.create`` makes them from a preset and what differs from it."""

    preset: Preset = Field("default", description="what the settings below differ from")
    bits: str = Field(
        "w4a4",
        description="bits of weights and activations, 2 to 8, or of weights alone as in w4; auto: bits per layer",
    )
    budget: float | None = Field(
        None, ge=2, le=8, description="mean bits of weights where bits are auto; null: 4 there"
    )
    first_last_bits: Same | int = Field(8, description="bits of the first and last layers' weights")
    add_bits: Same | int = Field(8, description="bits of tensors that enter an addition, such as residual branches")
    layers: dict[str, LayerWidth] = Field(
        {}, description="bits of single layers' weights, or float, by name or pattern such as layer3.*"
    )
    placement: PlacementSetting = Field(
        "auto",
        description="deployable: all that integer engines run; layers: what layers read, for transformers; "
        "auto: the one of these two that fits the network; relu-only: outputs of ReLU, as in papers",
    )
    outputs: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="names or indices of the returned tensors that decide, with commas; null: the only one",
    )
    output_kind: Annotated[tuple[Kind, ...], _NAMES] = Field(
        (),
        description="how each of them decides: class, multilabel, map, sequence or values; none: as shape and end say",
    )
    reduce_range: bool = Field(True, description="keep 8-bit weights in a 7-bit range, for CPUs without VNNI")
    power_of_two_scales: bool = Field(
        True, description="powers of two as scales of 8-bit activations, so that engines round alike"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all random numbers")
    device: Device = Field("auto", description="auto takes a CUDA device where there is one")
    precision: Literal["full", "mixed"] = Field(
        "full",
        description="of teacher and generator while images are made; mixed computes products in bfloat16, for GPUs",
    )
    generator: GeneratorSettings = GeneratorSettings()
    images: ImageSettings = ImageSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    student: StudentSettings = StudentSettings()

    @classmethod
    def create(cls, preset: str = "default", *changes: Mapping[str, Any]) -> Config:
        """The preset with ``changes`` laid over it.

        Args:
            preset: Its name; a change may name another.
            changes: Nested mappings, the later over the earlier.

        Raises:
            RequestError: A name is not known or a value is out of range; the message gives the nearest known name.
        """
        values: dict[str, Any] = {}
        for change in changes:
            values = _merged(values, change)
        preset = str(values.get("preset", preset))
        if preset not in PRESETS:
            raise RequestError(
                f"preset {preset!r} is not known{nearest(preset, PRESETS)}; give one of {', '.join(PRESETS)}"
            )
        bits = str(values.get("bits", "w4a4")).strip().lower()
        if "auto" in bits:
            values = {"budget": _USUAL_BUDGET, **{k: v for k, v in values.items() if (k, v) != ("budget", None)}}
        elif values.get("budget") is not None:
            raise RequestError(f"a budget is for --bits auto; give --bits auto instead of {bits}, or no budget")
        values["bits"] = _AUTOMATIC if bits == "auto" else bits
        try:
            return cls.model_validate(_merged(preset_values(preset, values["bits"]), values))
        except ValidationError as error:
            raise RequestError(_first_problem(error, values)) from error

    @property
    def format(self) -> NumberFormat:
        """The bit-widths of the student.

        Raises:
            RequestError: The bits are not of the form w4a4 or w4, or out of range.
        """
        parsed = NumberFormat.parse(self.bits, self.first_last_bits, self.add_bits)
        powers_of_two = self.power_of_two_scales and self._rounds_sums and parsed.activation == FULL_BITS
        reduce_range = self.reduce_range and not parsed.weights_alone  # products of floats do not overflow
        return replace(parsed, reduce_range=reduce_range, power_of_two_scales=powers_of_two)

    def placed(self, placement: Placement) -> Self:
        """The same settings with the placement that a network gets (``acq.quantization.placement``).

        It warns if the network's kind decided so, and weights or activations have fewer bits than is known to work.
        """
        width, activation = self.format.weight, self.format.activation
        narrow = [f"{width}-bit weights"] if width < _NARROWEST_WEIGHTS else []
        narrow += [f"{activation}-bit activations"] if activation is not None and activation < FULL_BITS else []
        if self.placement == "auto" and placement == "layers" and narrow:
            warnings.warn(
                "no published method keeps the accuracy of networks with attention or layer norms at "
                f"{' and '.join(narrow)}; give --bits w8a8 or w4a8",
                stacklevel=2,
            )
        return self.model_copy(update={"placement": placement})

    def headline(self) -> dict[str, Any]:
        """The settings that a summary shows."""
        shown = {"bits", "placement", "first_last_bits", "add_bits", "preset", "precision", "seed"}
        figures = self.model_dump(mode="json", include=shown)
        has_sums = self._rounds_sums and not self.format.weights_alone
        return figures if has_sums else {**figures, "add_bits": None}  # sums are not quantized

    @property
    def _rounds_sums(self) -> bool:
        """Whether tensors that enter an addition are quantized; so it is as long as the placement is open."""
        return self.placement in ("auto", "deployable")

    def fitted(self, traits: Traits) -> Self:
        """The settings that a network really gets: each ``auto`` that depends on the network becomes a number.

        Args:
            traits: Of the network.

        Raises:
            RequestError: A given setting needs batch norms or a generator, and there are none.
        """
        needed = (
            (traits.whole, "asks images for one class each, and the network answers otherwise"),
            (traits.normalised, "learns from batch norms, and the network has none, or folded ones"),
            (traits.spatial, "needs features with places, such as a map, and the network has none"),
        )
        faults = [fault for there, fault in needed if not there]
        if faults and self.preset in AS_GENERATED:
            raise RequestError(f"preset {self.preset} {faults[0]}; give --preset fast, default or best")
        generator = self.generator.fitted(traits)
        images = self.images.fitted(traits, generated=bool(generator.steps))
        student = self.student.fitted(traits)
        return self.model_copy(update={"generator": generator, "images": images, "student": student})

    def with_layers(self, layers: Mapping[str, LayerWidth]) -> Self:
        """The same settings with the bits of single layers."""
        return self.model_copy(update={"layers": dict(layers)})

    def to_yaml(self) -> str:
        """The whole tree as YAML, which a configuration file can hold."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def to_commented_yaml(self) -> str:
        """The whole tree as YAML with the meaning of every setting as a comment."""
        return "\n".join(_commented(self)) + "\n"


def differences(found: Config, usual: Config) -> dict[str, Any]:
    """The settings that differ between two configurations, by dotted key."""
    return dict(_different(found.model_dump(mode="json"), usual.model_dump(mode="json"), ""))


def _different(found: Mapping[str, Any], usual: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict) and usual[name]:
            yield from _different(value, usual[name], f"{above}{name}.")
        elif value != usual.get(name):
            yield f"{above}{name}", value


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _first_problem(error: ValidationError, given: Mapping[str, Any]) -> str:
    """One line on the first problem, with the nearest known name of an unknown setting."""
    problem = error.errors(include_url=False)[0]
    path = [part for part in map(str, problem["loc"]) if part in _names() or not part.startswith(_BRANCHES)]
    key = ".".join(path)
    value = given
    for part in path:
        value = value.get(part, {}) if isinstance(value, Mapping) else value
    if problem["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        hint = nearest(path[-1], known) or f"; known here: {', '.join(known)}"
        return f"setting {key!r} is not known{hint}"
    if path[0] in ("first_last_bits", "add_bits"):
        return f"setting {key!r}: give a bit-width such as 8, or same, got {value!r}"
    if problem["loc"] == ("layers",):
        return "setting 'layers' is a group of layer names; give one of them, such as layers.conv1=6"
    if path[0] == "layers":
        key = ".".join(map(str, problem["loc"][:2]))  # a layer may have any name
        return f"setting {key!r}: give 2 to 8 bits, or float, got {problem['input']!r}"
    if problem["type"] == "model_type":
        return f"setting {key!r} is a group of settings; give one of them, such as {key}.{_fields(path)[0]}"
    alternative = " or auto" if "literal" in str(error.errors(include_url=False)[1:2]) else ""
    text = problem["msg"].removeprefix("Value error, ").lower()
    if problem["type"].endswith(("_parsing", "_from_float")):
        text = text.partition(",")[0]  # the rest says what pydantic tried
    return f"setting {key!r}: {text}{alternative}, got {problem['input']!r}"


_BRANCHES = ("int", "literal[", "constrained-", "float", "bool", "function-")  # what pydantic adds to a path for unions


def _names() -> set[str]:
    """The names of all settings, at any depth."""
    names: set[str] = set()
    waiting: list[type[BaseModel]] = [Config]
    while waiting:
        for name, field in waiting.pop().model_fields.items():
            names.add(name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                waiting.append(field.annotation)
    return names


def _fields(path: Iterable[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def _commented(section: BaseModel, indent: str = "") -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:  # {_summary(type(value))}"
            yield from _commented(value, indent + "  ")
        else:
            text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
            yield f"{indent}{name}: {text}  # {field.description}"


def _summary(section: type[BaseModel]) -> str:
    return str(section.__doc__).splitlines()[0].rstrip(".")
