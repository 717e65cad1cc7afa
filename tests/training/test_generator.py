from __future__ import annotations

import copy
import statistics
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_runs import assert_same, training_

from acq.core.values import Preprocessing
from acq.training.generator import GeneratorLosses, GeneratorSettings, GeneratorTraining
from acq.training.phase import StepResult

NONE = dict.fromkeys(GeneratorLosses.model_fields, 0.0)


def phase_(**settings: Any) -> GeneratorTraining:
    phase = training_(generator=settings).phases["generator"]
    assert isinstance(phase, GeneratorTraining)
    return phase


def results(phase: GeneratorTraining) -> list[StepResult]:
    return [phase.step(number, 1.0) for number in range(phase.steps)]


@pytest.mark.parametrize("name", ["classes", "statistics", "centre", "paired", "consistency"])
def test_the_generator_learns(name: str) -> None:
    """Each loss falls when it alone has a weight; the median of late steps counts, because some are far off."""
    losses = {**NONE, name: 1.0}
    found = results(phase_(losses=losses, steps=50, batch=16, learning_rate=0.01))
    values = [result.losses[name].item() for result in found]
    assert statistics.median(values[20:]) < 0.95 * values[0]


def test_losses_without_weight_are_not_computed() -> None:
    """Only losses with a weight are named in the result."""
    (result,) = results(phase_(losses={**NONE, "classes": 1.0, "centre": 2.0}, steps=1))
    assert result.losses.keys() == {"classes", "centre"}


def test_consistency_is_evaluated_every_few_steps() -> None:
    """The loss that needs a second forward pass is evaluated in every third of the steps."""
    found = results(phase_(consistency_every=3, steps=7))
    assert [number for number, result in enumerate(found) if "consistency" in result.losses] == [2, 5]


def test_consistency_alone_is_evaluated_in_every_step() -> None:
    """Where no other loss has a weight, no step may be without one."""
    found = results(phase_(losses={**NONE, "consistency": 1.0}, steps=4))
    assert all(result.losses.keys() == {"consistency"} for result in found)


def test_a_batch_has_as_many_images_as_set() -> None:
    """The generator is asked for pairs of one label and one centre."""
    phase, seen = phase_(batch=12), []
    phase.context.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    phase.step(0, 1.0)
    (condition,) = seen
    assert len(condition.label) == 12
    assert torch.equal(condition.centre[:6], condition.centre[6:])


def test_the_rate_is_a_factor_of_the_step() -> None:
    """A first step of Adam with 0.3 of the rate moves the weights 0.3 times as far."""
    moves = []
    for rate in (1.0, 0.3):
        phase = phase_(steps=1)
        before = [value.detach().clone() for value in phase.context.generator.parameters()]
        phase.step(0, rate)
        pairs = zip(phase.context.generator.parameters(), before, strict=True)
        moves.append(torch.cat([(now - then).detach().flatten() for now, then in pairs]))
    torch.testing.assert_close(0.3 * moves[0], moves[1], rtol=1e-3, atol=1e-7)
    assert moves[0].abs().max().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_collapse_is_a_fault() -> None:
    """A generator whose labels were right and are not any more is reported within twenty steps."""
    phase = phase_(steps=20)
    phase.detector.restore({"means": {"labels": 1.0, "centres": 0.0}, "best": {"labels": 1.0, "centres": 0.0}})
    faults = [result.fault for result in results(phase)]
    assert faults[0] is None
    assert any(fault is not None and fault.startswith("labels fell from 1.00 to") for fault in faults)


def test_a_state_is_a_snapshot_from_which_another_phase_continues() -> None:
    """Optimizer and detector that a state holds are those of its step, and lead another run to the same generator."""
    phase, other = phase_(), phase_()
    phase.step(0, 1.0)
    state, context = phase.state(), phase.context.state()
    before = copy.deepcopy(state)
    for number in range(1, 4):
        phase.step(number, 1.0)
    assert_same(state, before)
    other.restore(state)
    other.context.restore(context)
    for number in range(1, 4):
        other.step(number, 1.0)
    assert_same(other.state(), phase.state())
    assert_same(other.context.state(), phase.context.state())
    assert_same(state, before)


@pytest.mark.parametrize(("size", "batch"), [(32, 64), (224, 20)])
def test_an_automatic_batch_depends_on_the_image_size(size: int, batch: int) -> None:
    """Small images come 64 at a time, and large ones as many as memory allows."""
    context = training_().context
    context.preprocessing = Preprocessing((3, size, size), (0.5,) * 3, (0.25,) * 3)
    assert GeneratorTraining(GeneratorSettings(), context).batch == batch
    assert GeneratorTraining(GeneratorSettings(batch=8), context).batch == 8


def test_a_batch_consists_of_pairs() -> None:
    """Odd and tiny batches are refused."""
    for batch in (2, 5):
        with pytest.raises(ValidationError, match="batch"):
            GeneratorSettings(batch=batch)
