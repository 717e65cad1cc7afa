from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import network
from small_runs import KNOWN, request_, run

from acq.config import Config, differences
from acq.errors import RequestError
from acq.presets import AS_GENERATED, PRESETS, preset_values
from acq.quantization.layers import QuantConv2d
from acq.recipe import Request, prepare


def test_acq_and_gdfq_differ_in_the_parts_of_acq_alone() -> None:
    """A comparison of the two compares centre matching, pairs and consistency, and nothing else."""
    found = differences(Config.create("gdfq"), Config.create("acq"))
    assert found.pop("preset") == "gdfq"
    losses = [f"generator.losses.{name}" for name in ("centre", "paired", "consistency")]
    assert found == dict.fromkeys(["generator.centre_std", *losses], 0.0)


@pytest.mark.parametrize("part", ["centre", "paired", "consistency"])
def test_each_part_of_acq_has_a_switch(part: str) -> None:
    """One part is left out, and the others keep their weights."""
    config = Config.create("acq", {"generator": {"losses": {part: 0}}})
    assert differences(config, Config.create("acq")) == {f"generator.losses.{part}": 0.0}


@pytest.mark.parametrize("preset", AS_GENERATED)
def test_in_the_setting_of_the_papers_nothing_else_helps(preset: str) -> None:
    """There are no scenes, no refinement, no views and no rounding, and all layers have the same bits."""
    prepared = prepare(Request(network("residual"), KNOWN, Config.create(preset, {"bits": "w3a3"}), {}))
    assert list(prepared.training.phases) == ["generator", "images", "calibration", "student", "conversion"]
    config = prepared.config
    assert (config.images.steps, config.student.augmentation, config.student.round_steps) == (0, 0, 0)
    calibration = config.calibration
    assert not any((calibration.augmentation, calibration.equalization, calibration.rounding))
    assert config.placement == "relu-only"
    layers = [module for module in prepared.training.context.student.modules() if isinstance(module, QuantConv2d)]
    assert layers
    assert {layer.weight_quantizer.bits for layer in layers} == {3}


def test_a_run_in_the_setting_of_the_papers_ends() -> None:
    """Its images are the generator's, and its student is the trained one if that is the better one."""
    result = run(request_(preset="acq", images={"count": 32, "steps": 0}, student={"steps": 2, "renew_count": 4}))
    assert result.summary["preset"] == "acq"
    assert result.summary["student_loss"]["selected"] in ("calibrated", "trained")
    assert torch.isfinite(torch.tensor(result.summary["agreement"]))


@pytest.mark.parametrize(
    ("preset", "bits", "lengths", "enough"),
    [
        ("default", "w8a8", "fast", True),
        ("default", "w4a8", "default", True),
        ("default", "w4", "default", True),
        ("default", "w8a4", "default", False),
        ("default", "wautoa4", "default", False),
        ("fast", "w4a7", "fast", True),
        ("best", "w8a8", "best", False),
        ("acq", "w8a8", "acq", False),
    ],
)
def test_wide_formats_take_less(preset: str, bits: str, lengths: str, enough: bool) -> None:
    """Wide activations may end a run early, and wide weights besides shorten the default."""
    expected: dict[str, Any] = {**PRESETS[lengths], "preset": preset}
    if enough:
        expected["calibration"] = {"enough": 0.05}
    assert preset_values(preset, bits) == expected


def test_a_preset_needs_a_number_format() -> None:
    with pytest.raises(RequestError, match="bits not understood: 'four'"):
        preset_values("default", "four")
