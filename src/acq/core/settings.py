"""The base of every settings section. A phase defines its own section; ``acq.config`` composes them."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

Auto = Literal["auto"]
Number = TypeVar("Number", int, float)


class Section(BaseModel):
    """A frozen part of the settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def filled(self, **automatic: Any) -> Self:
        """The same settings, where ``automatic`` values replace those that are ``auto``."""
        return self.model_copy(update={name: value for name, value in automatic.items() if _is_auto(self, name)})


def _is_auto(section: Section, name: str) -> bool:
    return bool(getattr(section, name) == "auto")


class LossWeights(Section):
    """Weights of losses by name. A weight of 0 switches a loss off; at least one must be above 0."""

    @model_validator(mode="after")
    def _some_loss_has_weight(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("at least one loss must have a weight above 0")
        return self


def names_of(text: str | None) -> tuple[str, ...]:
    """The names in a list with commas; none where it is not given."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def number_or(value: Number | Auto, automatic: Number) -> Number:
    """The number itself, or ``automatic`` where the setting is ``auto``."""
    return automatic if value == "auto" else value
