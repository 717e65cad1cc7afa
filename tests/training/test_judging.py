from __future__ import annotations

import copy

import pytest
import torch
from small_runs import run_until, training_

from acq.training.judging import Judge
from acq.training.loop import Training
from acq.training.selection import FIRST, over_kinds

WEIGHTS = {"logits": 1.0, "features": 4.0}


@pytest.fixture(scope="module")
def training() -> Training:
    """A small run with three candidates."""
    made = training_()
    run_until(made, "student")
    return made


def judge(training: Training) -> Judge:
    return Judge(8, WEIGHTS, training.context)


def test_images_and_scenes_judge_where_a_candidate_comes_from_scenes(training: Training) -> None:
    """There are as many scenes as augmented images; without a first student images judge alone."""
    images, scenes = judge(training).kinds()
    assert sum(len(batch.images) for batch in images) == sum(len(batch.images) for batch in scenes)
    candidates = training.context.candidates
    training.context.candidates = {name: state for name, state in candidates.items() if name != FIRST}
    assert len(judge(training).kinds()) == 1
    training.context.candidates = candidates


def test_the_quality_of_a_candidate_is_over_both_kinds(training: Training) -> None:
    """It is measured with the candidate's weights, kind by kind."""
    judging, context = judge(training), training.context
    kinds = judging.kinds()
    found, each = judging.qualities(*kinds), judging.by_kind(*kinds)
    assert list(found) == list(context.candidates) == ["first", "calibrated", "trained"]
    for name, state in context.candidates.items():
        context.student.load_state_dict(state)
        assert found[name] == over_kinds([judging.quality(kind) for kind in kinds]) == judging.quality(*kinds)
        assert each[name] == [judging.quality(kind) for kind in kinds]


def test_judging_draws_no_number_of_the_run(training: Training) -> None:
    """The same images judge again, and the random state stays."""
    before = copy.deepcopy(training.context.rng.get_state())
    first, again = (judge(training).kinds() for _ in range(2))
    assert torch.equal(before, training.context.rng.get_state())
    for kind, same in zip(first, again, strict=True):
        assert all(torch.equal(a.images, b.images) for a, b in zip(kind, same, strict=True))
