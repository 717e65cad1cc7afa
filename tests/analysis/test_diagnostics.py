from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers import images, traced

from acq.analysis.conditioning import Centres
from acq.analysis.diagnostics import diagnose, rounded, statistics
from acq.network.names import name_of
from acq.network.teacher import Teacher
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan


def test_statistics_of_remembered_images_are_met() -> None:
    """A network whose stored moments are those of the given images is at distance zero."""
    x, teacher = images(24), Teacher(copy.deepcopy(traced("residual")))  # the traced one is everybody's
    for index in range(len(teacher.structure.norms)):  # what a layer sees depends on those before
        found, stored = teacher.read(x, moments=True).moments[index], teacher.stored_moments[index]
        stored.mean.copy_(found.mean)
        stored.var.copy_(found.var)
    for row in statistics(teacher, x.split(7)):
        assert row["mean"] < 2e-3
        assert row["deviation"] < 2e-3


def test_statistics_are_measured_in_stored_deviations() -> None:
    """There is a row per batch norm by its public name, with root mean squares over channels."""
    teacher, x = Teacher(traced("residual")), images(24)
    rows = statistics(teacher, [x])
    assert [row["layer"] for row in rows] == [name_of(norm) for norm in teacher.structure.norms]
    moments, stored = teacher.read(x, moments=True).moments[0], teacher.stored_moments[0]
    unit = (stored.var + 0.01 * stored.var.mean()).sqrt()
    mean = ((moments.mean - stored.mean) / unit).square().mean().sqrt().item()
    deviation = ((moments.var.sqrt() - stored.var.sqrt()) / unit).square().mean().sqrt().item()
    assert (rows[0]["mean"], rows[0]["deviation"]) == pytest.approx((mean, deviation), abs=1e-3)


def test_diagnostics_are_json_values() -> None:
    """A row per layer, per batch norm and per image, and the spread of each class, are written to JSON."""
    graph = traced("residual")
    label = torch.arange(20) % 4
    centres = Centres(label, torch.rand(20, 2), torch.rand(20, 2))
    layout = plan(graph, NumberFormat(4, 4))
    found = json.loads(json.dumps(diagnose(graph, layout, Teacher(graph), images(20), centres)))
    assert found["images"] == 20
    assert {"layer", "weight_bits", "agreement"} <= found["layers"][0].keys()
    assert len(found["statistics"]) == len(Teacher(graph).structure.norms)
    assert [row["label"] for row in found["centres"]] == label.tolist()
    assert found["centres"][3]["requested"] == pytest.approx(centres.requested[3].tolist(), abs=1e-3)
    assert found["centres"][3]["realised"] == pytest.approx(centres.realised[3].tolist(), abs=1e-3)
    assert found["spread"].keys() == {"0", "1", "2", "3"}


def test_diagnostics_use_few_images() -> None:
    """Of more than 256 images only the first are used."""
    graph, x = traced("residual"), images(300)
    centres = Centres(torch.zeros(2, dtype=torch.long), torch.rand(2, 2), torch.rand(2, 2))
    first, cut = (diagnose(graph, plan(graph, NumberFormat(4, 4)), Teacher(graph), x_, centres) for x_ in (x, x[:256]))
    assert first == cut
    assert first["images"] == 256


def test_numbers_are_rounded_for_json() -> None:
    """Three digits are kept."""
    assert rounded([0.12345, 1.0]) == [0.123, 1.0]
