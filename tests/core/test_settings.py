from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from acq.core.settings import LossWeights, Section, number_or


class Speed(Section):
    rate: float = 0.5


class Weights(LossWeights):
    first: float = 1.0
    second: float = 0.0


def test_a_section_is_frozen() -> None:
    """A setting cannot be changed after the section was made."""
    with pytest.raises(ValidationError, match="frozen"):
        Speed().rate = 1.0


def test_unknown_settings_are_refused() -> None:
    """A misspelt name is an error and not ignored."""
    with pytest.raises(ValidationError, match="rates"):
        Speed.model_validate({"rates": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_are_finite(value: float) -> None:
    """NaN and infinity are no numbers that a setting can have."""
    with pytest.raises(ValidationError, match="finite"):
        Speed(rate=value)


def test_some_loss_has_a_weight() -> None:
    """All losses but one may be switched off."""
    assert Weights(first=0.0, second=2.0).second == 2
    with pytest.raises(ValidationError, match="at least one loss must have a weight above 0"):
        Weights(first=0.0)


def test_auto_stands_for_another_number() -> None:
    """A number is taken as it is, zero included."""
    assert number_or("auto", 7) == 7
    assert number_or(0, 7) == 0
