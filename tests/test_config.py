from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from acq.config import PRESETS, Config
from acq.errors import RequestError
from acq.files.limits import assignment, read_settings


def refused(*changes: dict[str, Any], preset: str = "default") -> str:
    """The one line that says what is wrong with a configuration."""
    with pytest.raises(RequestError) as caught:
        Config.create(preset, *changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_configuration(preset: str) -> None:
    """Its changes are valid, it knows its name, and it differs from the default as it says."""
    config = Config.create(preset)
    assert config.preset == preset
    assert (config.model_copy(update={"preset": "default"}) == Config.create()) == (not PRESETS[preset])


def test_the_later_change_counts() -> None:
    """Changes are laid over the preset in order, and what they leave out stays."""
    config = Config.create("fast", {"student": {"steps": 7, "batch": 3}}, {"student": {"steps": 9}}, {"seed": 4})
    assert (config.student.steps, config.student.batch, config.seed) == (9, 3, 4)
    assert config.student.learning_rate == Config.create("fast").student.learning_rate
    assert config.generator == Config.create("fast").generator


def test_losses_are_changed_one_at_a_time() -> None:
    """A weight three levels down leaves its neighbours as they were."""
    losses = Config.create("gdfq", {"generator": {"losses": {"centre": 3}}}).generator.losses
    assert losses.centre == 3
    assert losses.paired == Config.create("gdfq").generator.losses.paired == 0


def test_a_change_may_name_the_preset() -> None:
    """As a file does; the last name counts, and its values lie below every change."""
    config = Config.create("default", {"student": {"steps": 7}, "preset": "fast"})
    assert config == Config.create("fast", {"student": {"steps": 7}})
    assert Config.create("best", {"preset": "fast"}, {"preset": "gdfq"}) == Config.create("gdfq")


def test_batches_left_open_follow_the_size_of_images() -> None:
    """Small images take the usual numbers; a megapixel is the most at once; what was asked for stays."""
    small, large = Config.create().fitted((3, 32, 32)), Config.create().fitted((3, 224, 224))
    assert [s.batch for s in (small.generator, small.images, small.student)] == [64, 256, 64]
    assert [s.batch for s in (large.generator, large.images, large.student)] == [20, 20, 20]
    assert (small.images.count, large.images.count) == (512, 208)
    huge = Config.create().fitted((3, 4096, 4096)).images
    assert (huge.batch, huge.count) == (4, 16)
    asked = Config.create("fast", {"images": {"batch": 100}, "student": {"batch": 3}}).fitted((3, 224, 224))
    assert [s.batch for s in (asked.generator, asked.images, asked.student)] == [20, 100, 3]
    assert asked.fitted((3, 32, 32)) == asked


@pytest.mark.parametrize(("bits", "easy"), [("w8a8", True), ("W7A8", True), ("w4a8", False), ("w4a4", False)])
def test_wide_formats_take_the_steps_of_the_fast_preset(bits: str, easy: bool) -> None:
    """With the default preset alone, and below what was asked for."""
    steps = Config.create("default", {"bits": bits, "generator": {"steps": 7}})
    assert steps.images == Config.create("fast" if easy else "default").images
    assert steps.fitted((3, 32, 32)).student.steps == (200 if easy else 600)
    assert steps.generator.steps == 7
    assert Config.create("best", {"bits": bits}).fitted((3, 32, 32)).student.steps == 4000


def test_auto_is_spelled_out() -> None:
    """Activations of 4 bits and a mean of 4 where nothing else is said; some layers are narrow, so steps are full."""
    config = Config.create("default", {"bits": "AUTO"})
    assert (config.bits, config.budget, config.automatic) == ("wautoa4", 4.0, True)
    config = Config.create("default", {"bits": "wautoa8", "budget": 2.5}).fitted((3, 32, 32))
    assert (config.bits, config.budget, config.student.steps) == ("wautoa8", 2.5, 600)
    assert Config.create("default", {"bits": "w4a4"}).budget is None


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_of_depthwise_convolutions_are_trained_on_demand_alone(preset: str) -> None:
    """Rounded, they are at their best so far; others take the preset's steps."""
    size = (3, 32, 32)
    assert Config.create(preset).fitted(size, depthwise=True).student.steps == 0
    assert Config.create(preset).fitted(size).student.steps
    asked = Config.create(preset, {"student": {"steps": 30}})
    assert asked.fitted(size, depthwise=True).student.steps == asked.fitted(size).student.steps == 30


@pytest.mark.parametrize("asked", [None, True, False])
def test_channels_are_equalized_where_no_convolution_is_depthwise(asked: bool | None) -> None:
    """Unless the setting says otherwise, either way."""
    config, size = Config.create("default", {"student": {"equalization": asked}}), (3, 32, 32)
    assert config.fitted(size).student.equalization is (True if asked is None else asked)
    assert config.fitted(size, depthwise=True).student.equalization is (False if asked is None else asked)


def test_a_configuration_cannot_be_changed() -> None:
    """At no level."""
    config = Config.create()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.generator.losses.centre = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sed": 1}, "'sed' is not known (did you mean 'seed'?)"),
        ({"student": {"step": 1}}, "'student.step' is not known (did you mean 'steps'?)"),
        ({"generator": {"losses": {"center": 1}}}, "'generator.losses.center' is not known (did you mean 'centre'?)"),
        ({"images": {"qqq": 1}}, "'images.qqq' is not known; known here: count, batch"),
        ({"images": {"losses": {"center": 1}}}, "'images.losses.center' is not known (did you mean 'centre'?)"),
        ({"pool": {"size": 64}}, "'pool' is not known"),
        ({"student": {"mix": 0.5}}, "'student.mix' is not known"),
        ({"generator": 3}, "'generator'"),
        ({1: 2}, "'1'"),
        ({"preset": "fst"}, "preset 'fst' is not known (did you mean 'fast'?)"),
        ({"preset": None}, "give one of fast, default"),
        ({"seed": -1}, "'seed': input should be greater than or equal to 0, got -1"),
        ({"seed": 2**63}, "'seed'"),
        ({"seed": "one"}, "'seed'"),
        ({"device": "tpu"}, "'device'"),
        ({"placement": "here"}, "'placement'"),
        ({"ends": "some"}, "setting 'ends': give a bit-width such as 8, or same, got 'some'"),
        ({"addends": 2.5}, "setting 'addends': give a bit-width such as 8, or same, got 2.5"),
        ({"bits": 4}, "'bits'"),
        ({"budget": 3}, "a budget is for bits that are chosen; give bits auto, not w4a4, or no budget"),
        ({"bits": "auto", "budget": 1.5}, "'budget'"),
        ({"bits": "auto", "budget": float("nan")}, "'budget'"),
        ({"generator": {"batch": 7}}, "'generator.batch'"),
        ({"generator": {"batch": 2}}, "'generator.batch'"),
        ({"generator": {"steps": 0}}, "'generator.steps'"),
        ({"generator": {"spread": 1.5}}, "'generator.spread'"),
        ({"generator": {"learning_rate": 0}}, "'generator.learning_rate'"),
        ({"student": {"learning_rate": float("nan")}}, "'student.learning_rate'"),
        ({"generator": {"learning_rate": float("inf")}}, "'generator.learning_rate'"),
        ({"student": {"losses": {"logits": -1}}}, "'student.losses.logits'"),
        ({"student": {"losses": {"logits": 0, "features": 0}}}, "at least one loss must have a weight"),
        ({"student": {"views": 1.5}}, "'student.views'"),
        ({"images": {"count": 0}}, "'images.count'"),
        ({"images": {"count": 17}}, "'images.count'"),
        ({"images": {"batch": 2}}, "'images.batch'"),
        ({"images": {"batch": 7}}, "'images.batch'"),
        ({"images": {"steps": -1}}, "'images.steps'"),
        ({"images": {"learning_rate": 0}}, "'images.learning_rate'"),
        ({"images": {"scene": -0.1}}, "'images.scene'"),
        ({"images": {"scene": 1.1}}, "'images.scene'"),
        ({"images": {"renew_every": 0}}, "'images.renew_every'"),
        ({"images": {"renew_count": -1}}, "'images.renew_count'"),
        ({"images": {"losses": {"classes": 0, "statistics": 0, "centre": 0}}}, "at least one loss must have a weight"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    """The key with its path, the nearest known one, or the range that a value must lie in."""
    assert words in refused(change)


def test_an_unknown_preset_is_named() -> None:
    """By the nearest known one."""
    assert "did you mean 'default'?" in refused(preset="defualt")


@pytest.mark.parametrize("preset", PRESETS)
def test_yaml_is_read_as_it_was_written(preset: str, tmp_path: Path) -> None:
    """A configuration saved as a file and read again is equal, whatever preset it is laid over."""
    config = Config.create(preset, {"ends": "same", "student": {"learning_rate": 1e-5}})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Config.create("default", read_settings(tmp_path / "c.yaml")) == config


def test_small_learning_rates_are_numbers() -> None:
    """``1e-4`` means what it says, although YAML's own rules take it for a word."""
    change = assignment("student.learning_rate=1e-4")
    assert Config.create("default", change).student.learning_rate == 1e-4
