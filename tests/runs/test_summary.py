from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import JUDGED, request_, run

from acq.analysis.expected_loss import FITTED, relative_error
from acq.config import Config
from acq.files.images import LabelledImages
from acq.quantization.student import float_bytes, quantized_bytes
from acq.recipe import Prepared, prepare
from acq.runs.summary import accuracy_figures, measure, size_figures
from acq.synthesis.dataset import augmented

pytestmark = pytest.mark.usefixtures("quick_runs")

# names that other programs rely on (the command-line contract), with what each may be
NUMBER, TEXT = (int, float), str
CONTRACT: dict[str, Any] = {
    "model": TEXT, "bits": TEXT, "placement": TEXT, "first_last_bits": (int, TEXT), "preset": TEXT, "seed": int,
    "device": TEXT, "seconds": NUMBER, "peak_memory_mb": NUMBER, "steps": dict, "teacher_top1": (*NUMBER, type(None)),
    "top1": (*NUMBER, type(None)), "agreement": NUMBER, "attention": dict, "generator": dict, "float_bytes": int,
    "quantized_bytes": int,
}  # fmt: skip
CONDITIONING = {"correlation", "spread", "label_agreement", "eval_train_similarity"}
COST = {"seconds", "peak_memory_mb"}


def trained(**settings: Any) -> Prepared:
    """A small run after its last step."""
    prepared = prepare(request_(**settings))
    for _ in prepared.training.run():
        pass
    return prepared


def labelled(count: int = 20) -> LabelledImages:
    """Random images with random labels."""
    rng = np.random.default_rng(0)
    return LabelledImages(rng.integers(0, 256, (count, 16, 16, 3), np.uint8), rng.integers(0, 5, count))


def test_the_summary_keeps_the_contract(finished_run: Path) -> None:
    """Every name of the contract is there with a value of its kind, all of it JSON."""
    summary = json.loads((finished_run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary.keys() >= CONTRACT.keys()
    for name, kind in CONTRACT.items():
        assert isinstance(summary[name], kind), name
    assert summary["attention"].keys() == CONDITIONING
    assert summary["generator"].keys() == CONDITIONING | {"pair_distance", "agreement"}
    assert summary["steps"] == {"generator": 4, "images": 6, "student": 5}
    assert 0 < summary["quantized_bytes"] < summary["float_bytes"]
    assert (summary["model"], summary["bits"], summary["first_last_bits"]) == ("residual", "w4a4", 8)
    assert summary["seconds"] > 0
    assert summary["peak_memory_mb"] > 0


def test_without_labelled_images_accuracy_is_null(finished_run: Path) -> None:
    """Accuracy is unknown without data, and agreement is not its substitute."""
    summary = json.loads((finished_run / "summary.json").read_text())
    assert [summary[name] for name in ("test_images", "teacher_top1", "top1")] == [None] * 3


def test_agreement_is_on_augmented_finished_images() -> None:
    """Agreement is the share of augmented images that teacher and student put in one class. Few images come often."""
    prepared = trained(bits="w2a2", add_bits="same", student={"steps": 0})
    context = prepared.training.context
    rng = torch.Generator().manual_seed(0)
    parts = [context.dataset.batch.at(index) for index in (torch.arange(JUDGED) % 24).split(8)]
    images = torch.cat([augmented(part, 1.0, rng, context.teach).images for part in parts])
    with torch.no_grad():
        same = context.teacher.read(images).logits.argmax(1) == context.student.eval()(images).argmax(1)
    figures, _ = measure(prepared.training, prepared.graph, None)
    assert len(context.dataset) == 24
    assert figures["agreement"] == round(100 * same.float().mean().item(), 2) < 100


def test_figures_of_the_generator_are_apart() -> None:
    """A generator that is spoiled after training changes the figures under ``generator`` and no others."""
    prepared = trained()
    before, _ = measure(prepared.training, prepared.graph, None)
    with torch.no_grad():
        for parameter in prepared.training.context.generator.parameters():
            parameter.copy_(torch.randn_like(parameter))
    after, _ = measure(prepared.training, prepared.graph, None)
    changed = {name for name in before if before[name] != after[name]}
    assert "generator" in changed
    assert changed <= {"generator"} | COST


def test_attention_is_that_of_finished_images() -> None:
    """Label agreement under ``attention`` is the share of dataset images that show the requested class."""
    prepared = trained()
    context = prepared.training.context
    figures, _ = measure(prepared.training, prepared.graph, None)
    with torch.no_grad():
        found = context.teacher.read(context.dataset.images).logits.argmax(1)
    share = (found == context.dataset.label).float().mean().item()
    assert figures["attention"]["label_agreement"] == round(share, 4)


def test_measuring_changes_neither_the_student_nor_the_random_state() -> None:
    """Figures are the same however often they are measured, and the student's weights stay."""
    prepared = trained()
    context = prepared.training.context
    state, rng = {k: v.clone() for k, v in context.student.state_dict().items()}, context.rng.get_state()
    first, again = (measure(prepared.training, prepared.graph, None)[0] for _ in range(2))
    assert {k: v for k, v in first.items() if k not in COST} == {k: v for k, v in again.items() if k not in COST}
    assert all(torch.equal(value, state[name]) for name, value in context.student.state_dict().items())
    assert torch.equal(context.rng.get_state(), rng)


def test_seconds_grow_with_what_is_measured() -> None:
    """The time of evaluation on synthetic images counts, and that on real images does not."""
    training = (prepared := trained()).training
    before = training.seconds
    figures, _ = measure(training, prepared.graph, None)
    assert training.seconds > before
    assert figures["seconds"] == round(training.seconds, 1)
    spent, context = training.seconds, training.context
    accuracy_figures(context.teacher, context.student, context.preprocessing, labelled())
    assert training.seconds == spent


def test_accuracy_is_the_share_of_right_answers() -> None:
    """Teacher and student are evaluated on all labelled images, normalised as for the network."""
    context = trained(student={"steps": 0}).training.context
    data = labelled()
    found = accuracy_figures(context.teacher, context.student, context.preprocessing, data)
    pixels = torch.from_numpy(data.images[:20]).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(data.labels)
    with torch.no_grad():
        for name, network in (("teacher_top1", context.teacher), ("top1", context.student)):
            right = network((pixels - 0.5) / 0.25).argmax(1) == labels
            assert found[name] == round(100 * right.float().mean().item(), 2)
    assert found["test_images"] == 20


@pytest.mark.parametrize(("steps", "selected"), [(0, {"first", "calibrated"}), (5, {"first", "calibrated", "trained"})])
def test_losses_of_all_candidates_are_there(steps: int, selected: set[str]) -> None:
    """The losses of the first, calibrated and trained student are given, null for one that was not trained."""
    summary = run(request_(student={"steps": steps})).summary
    losses = summary["student_loss"]
    assert list(losses) == ["first", "calibrated", "trained", "selected"]
    assert losses["first"] > 0
    assert losses["calibrated"] > 0
    assert (losses["trained"] is None) == (steps == 0)
    assert losses["selected"] in selected
    found = summary["student_divergence"]
    assert list(found) == ["first", "calibrated", "trained"]
    assert found[losses["selected"]] == min(found[name] for name in selected)
    loss = FITTED.loss(relative_error(losses[losses["selected"]], {"logits": 1.0, "features": 4.0}))
    assert summary["expected_loss"] == pytest.approx(asdict(loss), abs=0.1)  # the figures are rounded


def test_sizes_are_those_of_the_student() -> None:
    """Bytes are those of weights and scales, and layers in floating point are counted."""
    result = run(request_(layers={"*.block.0": "float"}))
    assert result.summary["float_bytes"] == float_bytes(result.student)
    assert result.summary["quantized_bytes"] == quantized_bytes(result.student)
    assert result.summary["float_operators"] == len(result.student.plan.float_nodes) > 0
    assert result.summary["float_by_design"] == 0


def test_operators_in_float_by_design_are_counted_apart() -> None:
    """The placement of transformers leaves what is between layers in floating point, which is no shortcoming."""
    student = run(request_(placement="layers", bits="w8a8", layers={"*.block.0": "float"})).student
    figures, missed = size_figures(student), len(student.plan.missed_nodes)
    assert missed > 0
    assert figures["float_by_design"] == figures["float_operators"] - missed > 0


def test_additions_have_no_bits_in_the_relu_only_placement() -> None:
    """``add_bits`` is null where sums are not quantized."""
    assert Config.create("default", {"placement": "relu-only"}).headline()["add_bits"] is None
    assert run(request_(placement="relu-only")).summary["add_bits"] is None
