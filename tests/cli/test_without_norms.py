from __future__ import annotations

from typing import Any

import pytest
from commands import SMALL, acq, of, quantize

pytestmark = [pytest.mark.usefixtures("folder"), pytest.mark.filterwarnings("always::acq.errors.Note")]
SETTINGS = [setting for setting in SMALL if setting != "generator.steps=2"]
NOTE = "note: the network has no BatchNorm2d, so images start from scenes, without a generator"


def words(*arguments: str) -> list[str]:
    return quantize(*arguments, network=of("without_norms"), small=SETTINGS)


def test_a_run_has_one_note() -> None:
    """The command says once what it does without batch norms, and nothing if it is to be quiet."""
    answer = acq(*words("--json"))
    summary: dict[str, Any] = answer.json()
    assert summary["generator"]["agreement"] is None
    assert [line.startswith(NOTE) for line in answer.notes if line.startswith(("note", "warning"))] == [True]
    assert not acq(*words("--quiet", "--overwrite")).notes


def test_a_dry_run_times_the_phases_that_there_are() -> None:
    """No seconds are for a generator, the settings are those of the run, and the note comes once."""
    answer = acq(*words("--dry-run", "--json"))
    found = answer.json()
    assert list(found["seconds"]) == ["first", "images", "calibration", "student", "conversion"]
    assert (found["config"]["generator"]["steps"], found["config"]["images"]["scene"]) == (0, 1)
    assert sum(line.startswith(NOTE) for line in answer.notes) == 1
    assert "steps: generator 0, images 4, student 2" in acq(*words("--dry-run")).out


def test_a_network_without_batch_norms_is_inspected() -> None:
    """The plan is shown, and that there are none."""
    answer = acq("inspect", *of("without_norms"), "--json")
    assert answer.json()["batch_norms"] == 0
    assert answer.notes[0].startswith(NOTE)
