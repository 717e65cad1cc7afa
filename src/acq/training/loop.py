"""The only loop: it runs phase after phase, and goes back once if training diverges. It yields, others watch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from acq.core.values import Record
from acq.errors import RunError
from acq.training.context import Context
from acq.training.guards import nonfinite_losses
from acq.training.phase import REPORT_EVERY, Phase, StepResult, is_reported

_SNAPSHOT_EVERY = 50  # steps between the states to which diverged training goes back
_REDUCED = 0.3  # factor of the learning rate after going back


@dataclass(frozen=True)
class Stop:
    """Where a run went straight to its last phase.

    Attributes:
        phase: Name of the phase that ended it.
        step: Number of steps which that phase has done.
        reason: Why nothing more was to be gained.
    """

    phase: str
    step: int
    reason: str


class Training:
    """A run of phases and its present position. ``run`` moves it, ``state`` holds it whole.

    Args:
        context: What the phases share.
        phases: In order.
        seconds: Time spent on preparation.

    Attributes:
        seconds: Time spent so far, pauses left out.
        stop: Where and why the run went straight to its last phase; None where it did not.
    """

    def __init__(self, context: Context, phases: Sequence[Phase], seconds: float = 0.0) -> None:
        self.context = context
        self.phases = {phase.name: phase for phase in phases}
        self.current, self.step = phases[0].name, 0
        self.seconds = seconds
        self.reduced: list[str] = []  # phases that went back once
        self.stop: Stop | None = None
        self._fault: str | None = None  # seen since the last look

    def steps_of(self, phase: str) -> int:
        """Number of steps of a phase; 0 where the run does not have it or left it out."""
        if phase not in self.phases or self._is_left_out(phase):
            return 0
        return self.phases[phase].steps if self.stop is None or phase != self.stop.phase else self.stop.step

    def run(self) -> Iterator[Record]:
        """Do the remaining steps and yield a record after each. Between two records the state is whole.

        Raises:
            RunError: Training diverged twice in one phase.
        """
        clock = time.perf_counter()
        for steps, values in self._advance():
            now = time.perf_counter()
            self.seconds += now - clock
            yield Record(self.current, self.step, steps, self.seconds, values)
            clock = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Everything that is needed to continue exactly, with any number of processes."""
        return {
            "phase": self.current,
            "step": self.step,
            "seconds": self.seconds,
            "reduced": list(self.reduced),
            "stop": None if self.stop is None else asdict(self.stop),
            "fault": self._fault,
            "context": self.context.state(),
            "phases": {name: phase.state() for name, phase in self.phases.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, which stays as it is."""
        self.current, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
        self.reduced = list(state["reduced"])
        self.stop = None if state["stop"] is None else Stop(**state["stop"])
        self._fault = state["fault"]
        self.context.restore(state["context"])
        for name, phase in self.phases.items():
            phase.restore(state["phases"][name])

    def _advance(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps of the phase and the reported losses, after each step."""
        names = list(self.phases)
        for index in range(names.index(self.current), len(names)):
            if self._is_left_out(names[index]):
                continue
            if names[index] != self.current:
                self.current, self.step = names[index], 0
            phase = self.phases[self.current]
            snapshot: dict[str, Any] = {}
            while self.step < self.steps_of(self.current):
                if not snapshot or self.step % _SNAPSHOT_EVERY == 0:
                    snapshot = self.state()
                result = phase.step(self.step, _REDUCED if self.current in self.reduced else 1.0)
                self.step += 1
                fault = self._seen_fault(result, phase.steps)
                if fault is not None:
                    self._go_back(snapshot, fault)
                    continue
                if result.enough is not None:
                    self.stop = Stop(self.current, self.step, result.enough)
                steps = self.steps_of(self.current)
                yield steps, _reported(result, self.step - 1, steps)

    def _is_left_out(self, phase: str) -> bool:
        """Whether a phase comes between the one that stopped the run and the last one."""
        names = list(self.phases)
        return self.stop is not None and names.index(self.stop.phase) < names.index(phase) < len(names) - 1

    def _seen_fault(self, result: StepResult, steps: int) -> str | None:
        """What went wrong since the last look, in any process; None on steps without a look.

        A look makes an accelerator wait, so there it is taken only now and then.
        """
        self._fault = result.fault or self._fault
        every = 1 if self.context.rng.device.type == "cpu" else REPORT_EVERY
        if self.step % every and self.step != steps and result.enough is None:
            return None
        fault = nonfinite_losses(result.losses) or self._fault
        self._fault = None
        anywhere = self.context.any_process(fault is not None)
        return fault or ("another process reports it" if anywhere else None)

    def _go_back(self, snapshot: Mapping[str, Any], fault: str) -> None:
        place = f"{self.current} step {self.step}: {fault}"
        if self.current in self.reduced:
            raise RunError(
                f"training diverged at {place}; going back once with {_REDUCED} of the learning rate did not help. "
                f"Give a third of the present rate with --set {self.phases[self.current].section}.learning_rate=..."
            )
        warnings.warn(
            f"training diverged at {place}; continuing from step {snapshot['step']} with {_REDUCED} of the rate",
            stacklevel=2,
        )
        phase, seconds = self.current, self.seconds
        self.restore(snapshot)
        self._fault = None  # a snapshot may hold one that was not looked at yet
        self.seconds = seconds
        self.reduced.append(phase)


def _reported(result: StepResult, number: int, steps: int) -> dict[str, float]:
    """The losses as numbers on reported steps; empty on others."""
    if not is_reported(number, steps):
        return {}
    return {name: round(value.item(), 6) for name, value in result.losses.items()}
