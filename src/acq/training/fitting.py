"""Loss weights that depend on whether the network has batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import Field

from acq.core.settings import Auto, LossWeights
from acq.errors import RequestError

Weight = Annotated[float, Field(ge=0)] | Auto

_OF_NORMS = ("statistics", "statistics_plain", "consistency")  # losses that read batch norms
L = TypeVar("L", bound=LossWeights)


def fitted_weights(weights: L, section: str, automatic: Mapping[str, float], *, normalised: bool) -> L:
    """The weights with numbers in place of ``auto``.

    Args:
        weights: Of the losses of images.
        section: Where they stand in the settings, such as ``images``.
        automatic: What ``auto`` means, by name of the loss.
        normalised: Whether the network has batch norms.

    Raises:
        RequestError: A loss of batch norms has a weight, and there are none; or no loss has a weight.
    """
    fitted = weights.filled(**automatic)
    found = fitted.model_dump()
    for name in () if normalised else _OF_NORMS:
        if found[name]:
            raise RequestError(
                f"{section}.losses.{name} is {found[name]:g}, but the network has no batch norms that this loss could "
                "read; leave it out, or give 0"
            )
    if not any(found.values()):
        raise RequestError(f"no loss in {section}.losses has a weight above 0; give one, such as classes=1")
    return fitted
