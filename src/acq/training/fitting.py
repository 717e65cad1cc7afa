"""Loss weights that depend on the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import Field

from acq.core.outputs import Traits
from acq.core.settings import Auto, LossWeights
from acq.errors import RequestError

Weight = Annotated[float, Field(ge=0)] | Auto

_OF_NORMS = ("statistics", "statistics_plain", "consistency")  # losses that read batch norms
_OF_CENTRES, _OF_ANSWERS = ("centre",), ("classes",)
_OF_FEATURES = ("centre", "paired", "consistency", "features")
L = TypeVar("L", bound=LossWeights)


def fitted_weights(weights: L, section: str, automatic: Mapping[str, float], traits: Traits) -> L:
    """The weights with numbers in place of ``auto``.

    Args:
        weights: Of the losses of images or of the student.
        section: Where they stand in the settings, such as ``images``.
        automatic: What ``auto`` means, by name of the loss.
        traits: Of the network.

    Raises:
        RequestError: A loss has a weight and nothing that it could read; or no loss has a weight.
    """
    fitted = weights.filled(**automatic)
    found = fitted.model_dump()
    lacking = dict.fromkeys(() if traits.normalised else _OF_NORMS, "batch norms")
    lacking |= dict.fromkeys(() if traits.whole else _OF_CENTRES, "one answer per image")
    lacking |= dict.fromkeys(() if traits.asks else _OF_ANSWERS, "answers")
    lacking |= dict.fromkeys(() if traits.spatial else _OF_FEATURES, "features with places")
    for name, what in lacking.items():
        if found.get(name):
            raise RequestError(
                f"{section}.losses.{name} is {found[name]:g}, but the network has no {what} that this loss could "
                "read; leave it out, or give 0"
            )
    if not any(found.values()):
        raise RequestError(f"no loss in {section}.losses has a weight above 0; give one, such as classes=1")
    return fitted
