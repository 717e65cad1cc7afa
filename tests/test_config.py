from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from acq.config import Config, differences
from acq.errors import RequestError
from acq.files.documents import assignment, read_settings
from acq.presets import PRESETS

# one change of each kind of value: number, union, flag, text, nested weight, layer names that YAML could misread
CHANGES: list[dict[str, Any]] = [
    {"seed": 7},
    {"bits": "w3a5"},
    {"bits": "auto", "budget": 3.5},
    {"first_last_bits": "same", "add_bits": 6},
    {"layers": {"layer3.*": 6, "head: x # y": "float", "'q'": 2, "*": 8, "null": 4, "int.conv": 5}},
    {"layers": {f"features.{index}.conv.weights": 5 for index in range(12)}},
    {"student": {"steps": 30, "learning_rate": 1e-5, "batch": 3}},
    {"calibration": {"equalization": False, "rounding": False}},
    {"generator": {"kind": "canvas", "losses": {"centre": 1e-7}}},
    {"images": {"count": 16, "losses": {"paired": 3}}},
    {"device": "cpu", "placement": "relu-only", "precision": "mixed"},
]
presets = st.sampled_from(sorted(PRESETS))


def refused(*changes: dict[Any, Any], preset: str = "default") -> str:
    """The one line that says what is wrong with a configuration."""
    with pytest.raises(RequestError) as caught:
        Config.create(preset, *changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def sections(section: BaseModel, above: str = "") -> Iterator[tuple[str, BaseModel]]:
    """A section and all sections below it, with the dotted prefix of their keys."""
    yield above, section
    for name in type(section).model_fields:
        if isinstance(inner := getattr(section, name), BaseModel):
            yield from sections(inner, f"{above}{name}.")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_configuration(preset: str) -> None:
    """A preset is valid, knows its name, and differs from the default where it says so."""
    config = Config.create(preset)
    assert config.preset == preset
    assert (config.model_copy(update={"preset": "default"}) == Config.create()) == (not PRESETS[preset])


def test_every_setting_says_what_it_means() -> None:
    """Each setting has a description, and each section a docstring."""
    for above, section in sections(Config.create()):
        assert type(section).__doc__, above
        for name, field in type(section).model_fields.items():
            is_section = isinstance(getattr(section, name), BaseModel)
            assert is_section or field.description, f"{above}{name}"


@given(presets, st.lists(st.sampled_from(CHANGES), max_size=4))
def test_printed_settings_give_the_same_configuration(preset: str, changes: list[dict[str, Any]]) -> None:
    """YAML of a configuration, with or without comments, gives it again, whatever preset it is laid over."""
    config = Config.create(preset, *changes)
    for text in (config.to_commented_yaml(), config.to_yaml()):
        assert Config.create("best", yaml.safe_load(text)) == config


def test_commented_settings_have_a_meaning_on_every_line() -> None:
    """Each setting of a preset has a line of its own that ends in its description."""
    lines = Config.create("best").to_commented_yaml().splitlines()
    assert all("  # " in line for line in lines)
    keys = sum(len(type(section).model_fields) for _, section in sections(Config.create()))
    assert len(lines) == keys


def test_a_file_of_settings_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A configuration saved as a file and read again is equal."""
    config = Config.create("fast", *CHANGES)
    (tmp_path / "c.yaml").write_text(config.to_commented_yaml())
    assert Config.create("default", read_settings(tmp_path / "c.yaml")) == config


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
    """The last preset named in changes counts, and its values lie below every change."""
    config = Config.create("default", {"student": {"steps": 7}, "preset": "fast"})
    assert config == Config.create("fast", {"student": {"steps": 7}})
    assert Config.create("best", {"preset": "fast"}, {"preset": "gdfq"}) == Config.create("gdfq")


@pytest.mark.parametrize(
    ("bits", "words"),
    [("w8a8", None), ("w4a8", None), ("w4", None), ("w4a4", "4-bit activations"), ("w3a8", "3-bit weights"),
     ("w2a6", "2-bit weights and 6-bit activations")],
)  # fmt: skip
def test_few_bits_for_networks_with_attention_are_warned_of(bits: str, words: str | None) -> None:
    """Where the network's kind chose the placement."""
    config = Config.create("default", {"bits": bits})
    assert config.placed("deployable").placement == "deployable"
    with pytest.warns(UserWarning, match=f"no published method.* at {words};") if words else nullcontext():
        assert config.placed("layers").placement == "layers"
    assert Config.create("default", {"bits": bits, "placement": "layers"}).placed("layers").placement == "layers"


@pytest.mark.parametrize(("bits", "easy"), [("w8a8", True), ("W7A8", True), ("w4a8", False), ("w4a4", False)])
def test_wide_formats_train_as_long_as_the_fast_preset(bits: str, easy: bool) -> None:
    """From 7 bits the default preset alone takes the fast one's steps, below what is given."""
    config = Config.create("default", {"bits": bits, "generator": {"steps": 7}})
    expected = Config.create("fast" if easy else "default")
    assert config.images == expected.images
    assert config.student.auto_steps == expected.student.auto_steps
    assert config.generator.steps == 7
    assert Config.create("best", {"bits": bits}).student == Config.create("best").student


def test_auto_is_spelled_out() -> None:
    """Automatic bits mean 4-bit activations and a mean of 4 bits unless given, and train the full steps."""
    config = Config.create("default", {"bits": "AUTO"})
    assert (config.bits, config.budget) == ("wautoa4", 4.0)
    config = Config.create("default", {"bits": "wautoa8", "budget": 2.5})
    assert (config.bits, config.budget) == ("wautoa8", 2.5)
    assert config.student == Config.create().student
    assert Config.create().budget is None


def test_a_configuration_cannot_be_changed() -> None:
    """A configuration is frozen at every level."""
    config = Config.create()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.generator.losses.centre = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # names that are not known
        ({"sed": 1}, "setting 'sed' is not known (did you mean 'seed'?)"),
        ({"student": {"step": 1}}, "setting 'student.step' is not known (did you mean 'steps'"),
        ({"generator": {"losses": {"center": 1}}}, "'generator.losses.center' is not known (did you mean 'centre'?)"),
        ({"images": {"losses": {"center": 1}}}, "'images.losses.center' is not known (did you mean 'centre'?)"),
        ({"images": {"qqq": 1}}, "'images.qqq' is not known; known here: count, batch"),
        ({"pool": {"size": 64}}, "'pool' is not known"),
        ({1: 2}, "'1'"),
        # values of another kind
        ({"generator": 3}, "setting 'generator' is a group of settings; give one of them, such as generator.kind"),
        ({"layers": 3}, "setting 'layers' is a group of layer names"),
        ({"seed": "one"}, "setting 'seed': input should be a valid integer"),
        ({"budget": "much", "bits": "auto"}, "setting 'budget'"),
        ({"device": "tpu"}, "setting 'device': input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (
            {"placement": "here"},
            "setting 'placement': input should be 'auto', 'deployable', 'layers' or 'relu-only', got 'here'",
        ),
        ({"precision": "half"}, "setting 'precision'"),
        ({"preset": "fst"}, "preset 'fst' is not known (did you mean 'fast'?)"),
        ({"preset": None}, "give one of default, fast"),
        # numbers out of range
        ({"seed": -1}, "setting 'seed': input should be greater than or equal to 0, got -1"),
        ({"seed": 2**63}, "'seed'"),
        ({"budget": 3}, "a budget is for --bits auto; give --bits auto instead of w4a4, or no budget"),
        ({"bits": "auto", "budget": 1.5}, "'budget'"),
        ({"bits": "auto", "budget": float("nan")}, "'budget'"),
        ({"generator": {"steps": -1}}, "'generator.steps': input should be greater than or equal to 0 or auto, got -1"),
        ({"generator": {"centre_std": 1.5}}, "'generator.centre_std'"),
        ({"generator": {"learning_rate": 0}}, "'generator.learning_rate'"),
        ({"generator": {"learning_rate": float("inf")}}, "'generator.learning_rate'"),
        ({"student": {"learning_rate": float("nan")}}, "'student.learning_rate'"),
        ({"student": {"augmentation": 1.5}}, "'student.augmentation'"),
        ({"student": {"renew_every": 0}}, "'student.renew_every'"),
        ({"student": {"renew_count": -1}}, "'student.renew_count'"),
        ({"images": {"steps": -1}}, "'images.steps'"),
        ({"images": {"learning_rate": 0}}, "'images.learning_rate'"),
        ({"images": {"scene": -0.1}}, "'images.scene': input should be greater than or equal to 0 or auto, got -0.1"),
        ({"images": {"scene": 1.1}}, "'images.scene'"),
        ({"calibration": {"images": 0}}, "'calibration.images'"),
        ({"student": {"losses": {"logits": -1}}}, "'student.losses.logits'"),
        (
            {"student": {"losses": {"logits": 0, "features": 0}}},
            "setting 'student.losses': at least one loss must have a weight above 0",
        ),
        (
            {"images": {"losses": {"classes": 0, "statistics": 0, "centre": 0, "smoothness": 0}}},
            "setting 'images.losses': at least one loss must have a weight above 0",
        ),
        # settings that take a number or a word
        (
            {"images": {"losses": {"classes": "much"}}},
            "'images.losses.classes': input should be a valid number or auto",
        ),
        ({"student": {"steps": -1}}, "'student.steps': input should be greater than or equal to 0 or auto, got -1"),
        (
            {"student": {"steps": "many"}},
            "setting 'student.steps': input should be a valid integer or auto, got 'many'",
        ),
        ({"student": {"steps": 1.5}}, "input should be a valid integer or auto, got 1.5"),
        ({"generator": {"batch": 7}}, "setting 'generator.batch': input should be a multiple of 2 or auto, got 7"),
        ({"generator": {"batch": 2}}, "input should be greater than or equal to 4 or auto, got 2"),
        ({"images": {"batch": 2}}, "'images.batch'"),
        ({"images": {"batch": 7}}, "'images.batch'"),
        ({"images": {"count": 0}}, "'images.count': input should be greater than or equal to 16 or auto, got 0"),
        ({"images": {"count": 17}}, "'images.count'"),
        ({"calibration": {"equalization": "maybe"}}, "input should be a valid boolean or auto, got 'maybe'"),
        ({"first_last_bits": "some"}, "setting 'first_last_bits': give a bit-width such as 8, or same, got 'some'"),
        ({"add_bits": 2.5}, "setting 'add_bits': give a bit-width such as 8, or same, got 2.5"),
        ({"layers": {"intro.0": 9.5}}, "setting 'layers.intro.0': give 2 to 8 bits, or float, got 9.5"),
        ({"layers": {"bool": "flaot"}}, "setting 'layers.bool': give 2 to 8 bits, or float, got 'flaot'"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[Any, Any], words: str) -> None:
    """One line names the dotted key, and the nearest known key or the values that it takes."""
    assert words in refused(change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": "w9a4"}, "bits out of range: weight 9"),
        ({"bits": "four"}, "bits not understood: 'four'"),
        ({"bits": 4}, "bits not understood: '4'"),
        ({"first_last_bits": 1}, "bits out of range: first_last_bits 1"),
        ({"add_bits": 9}, "bits out of range: add_bits 9"),
        ({"bits": "w4a8", "add_bits": 4}, "add_bits 4 is below the activations' 8 bits"),
    ],
)
def test_wrong_bits_are_named(change: dict[str, Any], words: str) -> None:
    """Bits that no format has are refused, with the setting's name."""
    with pytest.raises(RequestError) as caught:
        _ = Config.create("default", change).format
    assert words in str(caught.value)


def test_an_unknown_preset_is_named() -> None:
    """The nearest known preset is offered."""
    assert "did you mean 'default'?" in refused(preset="defualt")


def test_small_learning_rates_are_numbers() -> None:
    """``1e-4`` on the command line is a number, although YAML reads it as text."""
    change = assignment("student.learning_rate=1e-4")
    assert Config.create("default", change).student.learning_rate == 1e-4


def test_differences_are_dotted_keys() -> None:
    """Only settings that differ are given, layers as one value."""
    config = Config.create("default", {"seed": 3, "student": {"losses": {"logits": 2}}, "layers": {"a.b": 5}})
    assert differences(config, Config.create()) == {"seed": 3, "student.losses.logits": 2.0, "layers": {"a.b": 5}}
    assert differences(config, config) == {}


@pytest.mark.parametrize(
    ("change", "powers"),
    [
        ({"bits": "w4a8"}, True),
        ({"bits": "w4a8", "power_of_two_scales": False}, False),
        ({"bits": "w4a8", "placement": "relu-only"}, False),
        ({"bits": "w8a4"}, False),
    ],
)
def test_scales_are_powers_of_two_for_deployable_8_bit_activations(change: dict[str, Any], powers: bool) -> None:
    """The format has them in the deployable placement with 8-bit activations, unless switched off."""
    assert Config.create("default", change).format.power_of_two_scales == powers


def test_a_headline_has_no_bits_of_additions_that_are_not_quantized() -> None:
    """In the relu-only placement sums stay in floating point."""
    assert Config.create().headline()["add_bits"] == 8
    assert Config.create("default", {"placement": "relu-only"}).headline()["add_bits"] is None
