"""What a phase is: the contract between the loop and everything that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

REPORT_EVERY = 10  # steps between two reports of losses


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        losses: Scalars by name, without weights.
        fault: What shows that training diverged; None when nothing does.
        enough: Why nothing more is to be gained, so that the last phase follows; None when something may be.
    """

    losses: Mapping[str, Tensor]
    fault: str | None = None
    enough: str | None = None


class Phase(Protocol):
    """A part of a run. It owns its section of the settings and its state.

    Attributes:
        name: Of the phase in records, logs and checkpoints.
        section: The section of the settings that a message about it names.
    """

    name: str
    section: str

    @property
    def steps(self) -> int:
        """Number of steps."""

    def step(self, number: int, rate: float) -> StepResult:
        """Do step ``number``, counted from 0, with ``rate`` times the usual learning rate."""

    def state(self) -> dict[str, Any]:
        """Everything of its own that is needed to continue exactly. Later steps do not change the returned value."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, which stays as it is."""


class OneStep:
    """A phase of one step, which is done or not, so that it has no state of its own."""

    steps = 1

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, which is empty."""


def is_reported(number: int, steps: int) -> bool:
    """Whether losses are reported after step ``number``."""
    return (number + 1) % REPORT_EVERY == 0 or number + 1 == steps
