from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from report.made_run import PLAN

from acq.quantization.formats import NumberFormat
from acq.report.caveats import caveats
from acq.training.few_images import good_enough


def kept(selected: str, *divergences: float | None) -> dict[str, Any]:
    """Figures of a run that kept a student, with the divergences of the first, the calibrated and the trained one."""
    names = ("first", "calibrated", "trained")
    return {
        "student_loss": {**dict.fromkeys(names, 0.1), "selected": selected},
        "student_divergence": dict(zip(names, divergences, strict=True)),
    }


SUMMARY: dict[str, Any] = {
    "preset": "default",
    "output": {"kind": "class", "size": 5},
    "teacher_top1": 91.0,
    "top1": 90.0,
    "attention": {"label_agreement": 0.99, "correlation": 0.95},
    "stopped": None,
    **kept("trained", 0.3, 0.2, 0.1),
}


SETTINGS: dict[str, Any] = {
    "generator": {"steps": 500, "centre_std": 0.15, "losses": {"centre": 60.0}},
    "images": {"steps": 100, "losses": {"centre": 10.0}},
}


def asked(**changes: Any) -> dict[str, Any]:
    """Settings with changes, each ``section_key``."""
    found = copy.deepcopy(SETTINGS)
    for name, value in changes.items():
        section, key = name.split("_", 1)
        (found[section]["losses"] if key == "centre" else found[section])[key] = value
    return found


@pytest.mark.parametrize(
    ("values", "words", "there"),
    [
        ({"top1": None}, "the accuracy is unknown", True),
        ({}, "the accuracy is unknown", False),
        ({}, "variation between seeds", True),
        ({"top1": None}, "variation between seeds", False),
        ({"attention": {"label_agreement": 0.5, "correlation": None}}, "requested class in only 50 %", True),
        ({}, "requested class in only", False),
        ({}, "was kept", False),
        (kept("calibrated", 0.3, 0.2, None), "was kept", False),
        (
            kept("calibrated", 0.3, 0.2, 5.0),
            "The calibrated student was kept, because no later one is better on synthetic images. Its divergence "
            "from the teacher is 0.2, and that of the trained student is 5.0.",
            True,
        ),
        ({}, "The run stopped", False),
        (
            {"stopped": {"phase": "few", "step": 40, "reason": "all is well"}},
            "The run stopped after a few finished images, because all is well. --preset best goes on.",
            True,
        ),
        ({"stopped": {"phase": "few", "step": 40, "reason": "so"}, "preset": "best"}, "--preset best goes on", False),
        (kept("first", 0.1, 0.2, 0.3), "from the teacher is 0.1, and that of the trained student is 0.3", True),
        (kept("first", 0.1, 0.2, None), "from the teacher is 0.1, and that of the calibrated student is 0.2", True),
        ({}, "one quantized layer at a time", True),
        (
            {"is_at_chance": True, "agreement": 1.25},
            "The student is of no use. It agrees with the teacher on 1.2 % of the synthetic images, no more often than "
            "one that always answers the same.",
            True,
        ),
        ({"is_at_chance": False, "agreement": 1.25}, "of no use", False),
        ({}, "of no use", False),
    ],
)
def test_caveats_on_figures_are_those_that_apply(values: dict[str, Any], words: str, there: bool) -> None:
    assert any(words in caveat for caveat in caveats(SUMMARY | values, SETTINGS, PLAN)) == there


def test_a_run_of_an_earlier_version_has_no_divergences() -> None:
    """The page then leaves out why its student was kept."""
    earlier = {name: value for name, value in SUMMARY.items() if name != "student_divergence"}
    assert caveats(earlier, SETTINGS, PLAN) == caveats(SUMMARY, SETTINGS, PLAN)


def test_operators_in_floating_point_are_counted() -> None:
    """None of them, no caveat."""
    first, *others = PLAN.nodes
    assert not any("floating point" in caveat for caveat in caveats(SUMMARY, SETTINGS, PLAN))
    one = replace(PLAN, nodes=(replace(first, floating=True), *others))
    assert any(caveat.startswith("1 operator stays in floating point") for caveat in caveats(SUMMARY, SETTINGS, one))
    two = replace(one, nodes=(*one.nodes, one.nodes[0]))
    assert any(caveat.startswith("2 operators stay in floating point") for caveat in caveats(SUMMARY, SETTINGS, two))


def test_the_relu_only_placement_is_for_comparison() -> None:
    """It has operators in floating point by definition, so they are not counted."""
    plan = replace(PLAN, placement="relu-only", nodes=(replace(PLAN.nodes[0], floating=True),))
    found = caveats(SUMMARY, SETTINGS, plan)
    assert any("for comparison with papers" in caveat for caveat in found)
    assert not any("operator" in caveat or "addition" in caveat for caveat in found)


@pytest.mark.parametrize("bits", ["w4", "w8"])
def test_weights_alone_bring_no_speed(bits: str) -> None:
    """The page says so once, and counts no operators."""
    found = caveats(SUMMARY, SETTINGS, replace(PLAN, format=NumberFormat.parse(bits)))
    assert any("a smaller file, and no more speed" in caveat for caveat in found)
    assert not any("operator" in caveat or "addition" in caveat for caveat in found)


@pytest.mark.parametrize(
    ("bits", "add", "there"), [("w4a4", 8, True), ("w4a4", 5, True), ("w4a4", "same", False), ("w8a8", 8, False)]
)
def test_wider_additions_are_named(bits: str, add: int | str, there: bool) -> None:
    """Where tensors that enter an addition have more bits than activations."""
    plan = replace(PLAN, format=NumberFormat.parse(bits, "8", add))
    found = [caveat for caveat in caveats(SUMMARY, SETTINGS, plan) if "enter an addition" in caveat]
    assert bool(found) == there
    assert not there or f"have {add} bits" in found[0]


def test_sentences_are_short() -> None:
    """At most 25 words each, as the guide for texts says."""
    worst = {
        "preset": "default",
        "output": {"kind": "class", "size": 5},
        "teacher_top1": None,
        "top1": None,
        "attention": {"label_agreement": 0.1, "correlation": -0.1},
        "stopped": {"phase": "few", "step": 40, "reason": good_enough(0.01234, 0.05)},
        **kept("calibrated", None, 0.2, 5.0),
    }
    first = {**worst, **kept("first", 0.1, 0.2, 5.0)}
    found = [
        *caveats(worst, SETTINGS, PLAN),
        *caveats(first, SETTINGS, PLAN),
        *caveats(SUMMARY, SETTINGS, replace(PLAN, placement="relu-only")),
    ]
    assert all(len(sentence.split()) <= 25 for caveat in found for sentence in caveat.split(". "))


@pytest.mark.parametrize(
    ("settings", "correlation", "section"),
    [
        (asked(), 0.5, "images"),
        (asked(), 0.9, None),
        (asked(), None, None),
        (asked(generator_centre_std=0.0), 0.5, None),
        (asked(images_centre=0.0), 0.5, "generator"),
        (asked(images_centre=0.0, generator_steps=0), 0.5, None),
        (asked(generator_centre=0.0, images_centre=0.0), 0.5, None),
    ],
)
def test_attention_that_does_not_follow_is_told_where_it_was_asked(
    settings: dict[str, Any], correlation: float | None, section: str | None
) -> None:
    found = caveats(SUMMARY | {"attention": {"label_agreement": 0.99, "correlation": correlation}}, settings, PLAN)
    told = [caveat for caveat in found if "with a correlation of 0.50" in caveat]
    assert len(told) == (section is not None)
    assert all(caveat.endswith(f"More {section}.steps may help.") for caveat in told)


def test_images_as_generated_need_more_steps_of_the_generator() -> None:
    found = caveats(SUMMARY | {"attention": {"label_agreement": 0.1, "correlation": None}}, asked(images_steps=0), PLAN)
    assert any("only 10 %" in caveat and "More generator.steps may help." in caveat for caveat in found)


def test_steps_do_not_help_a_run_that_stops_after_a_few_images() -> None:
    """These images are finished briefly, whatever the settings are."""
    stopped = {"stopped": {"phase": "few", "step": 40, "reason": "all is well"}}
    found = caveats(SUMMARY | stopped | {"attention": {"label_agreement": 0.5, "correlation": 0.5}}, SETTINGS, PLAN)
    assert any("only 50 %" in caveat for caveat in found)
    assert not any("may help" in caveat or "correlation" in caveat for caveat in found)
