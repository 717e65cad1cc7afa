from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SIZE, network, traced

from acq.config import Config
from acq.core.values import Preprocessing, Record
from acq.recipe import Request, prepare
from acq.runs import estimate as estimating
from acq.runs.estimate import estimate
from acq.training.trainer import Trainer, train

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 40, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 32, "batch": 8, "steps": 20},
    "student": {"steps": 30, "batch": 8, "calibration_images": 32},
}


def trainer(**student: Any) -> Trainer:
    config = Config.create("default", SETTINGS, {"student": student})
    return prepare(Request(network("residual"), Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3), config, {}))


@pytest.mark.parametrize(("views", "most", "batches"), [(1.0, 32, 4), (1.0, 48, 6), (1.0, 1000, 8), (0.0, 1000, 4)])
def test_steps_are_counted_at_the_pace_of_the_fastest(
    monkeypatch: pytest.MonkeyPatch, augment: float, most: int, batches: int
) -> None:
    """A clock of the test's own: a first step of 9 seconds, others of 2, one with the consistency loss of 4.5; of 32
    images calibration sees a view too, if any are wanted, and not more than ``most`` together."""

    def paced(shortened: Trainer) -> Any:
        plans = shortened.generator_plan, shortened.image_plan, shortened.student_plan
        assert [plan.steps for plan in plans] == [5, 3, 3]  # the generator's fifth has the consistency loss
        assert (shortened.image_plan.count, shortened.student_plan.calibration_images) == (8, 8)
        clock = 0.0
        for phase, steps in (("generator", 5), ("images", 3), ("calibration", 1), ("student", 3), ("freezing", 1)):
            for step in range(steps):
                clock += 2.0 if 0 < step < 4 else 4.5 if step == 4 else 9.0
                yield Record(phase, step + 1, steps, clock, {})

    monkeypatch.setattr(estimating, "train", paced)
    spent = trainer(augment=augment, calibration_images=most)
    spent.seconds = 0.0
    expected = {"generator": 2.5 * 40, "images": 2 * 80, "calibration": 9 * batches, "student": 2 * 30, "freezing": 9}
    assert estimate(spent) == expected


def test_the_real_run_is_of_the_size_foretold() -> None:
    """Within a factor of four on a toy, whose steps take milliseconds."""
    torch.manual_seed(0)
    traced("residual")
    foretold = sum(estimate(trainer()).values())
    run = trainer()
    run.seconds = 0.0
    for _ in train(run):
        pass
    assert foretold / 4 < run.seconds < foretold * 4


def test_no_student_steps_take_no_time() -> None:
    """As for networks that are rounded alone."""
    assert estimate(trainer(steps=0))["student"] == 0
