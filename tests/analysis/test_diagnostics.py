from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers import SIZE, images, traced

from acq.analysis.conditioning import fresh_steps, review
from acq.analysis.diagnostics import insight, statistics
from acq.core.values import Preprocessing
from acq.network.teacher import Teacher
from acq.quantization.plan import NumberFormat, plan
from acq.synthesis.generators import CanvasGenerator


def test_statistics_of_the_images_that_were_stored_are_met() -> None:
    """A network that remembers exactly these images is at no distance; others are at the distance of their moments."""
    graph, x = traced("residual"), images(24)
    teacher = Teacher(graph)
    remembered = Teacher(copy.deepcopy(traced("residual")))  # the traced one is everybody's
    norms = [node for node in remembered.graph.graph.nodes if node.name in remembered.structure.norms]
    with torch.no_grad():
        for node in norms:  # each layer after the other: what it sees depends on those before
            index = remembered.structure.norms.index(node.name)
            found = remembered.read(x, moments=True).moments[index]
            remembered.stored[index].mean.copy_(found.mean)
            remembered.stored[index].var.copy_(found.var)
    for row in statistics(remembered, x.split(7)):
        assert row["mean"] < 2e-3
        assert row["deviation"] < 2e-3
    rows = statistics(teacher, [x])
    assert [row["layer"] for row in rows] == list(teacher.structure.norms)
    moments, stored = teacher.read(x, moments=True).moments[0], teacher.stored_moments[0]
    unit = (stored.var + 0.01 * stored.var.mean()).sqrt()
    by_hand = ((moments.mean - stored.mean) / unit).square().mean().sqrt().item()
    assert rows[0]["mean"] == pytest.approx(by_hand, abs=1e-3)


def test_insight_is_json_of_everything() -> None:
    """A row a layer and a grid, a norm, an image that was reviewed; a map a sample, whose greatest value is one."""
    graph = traced("residual")
    teacher = Teacher(graph)
    generator = CanvasGenerator(Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3), 5, noise_dim=4, width=8)
    rng = torch.Generator().manual_seed(0)
    seen = review(fresh_steps(generator, teacher, 20, noise_dim=4, spread=0.2, rng=rng, batch=10))
    found = json.loads(json.dumps(insight(graph, plan(graph, NumberFormat(4, 4)), teacher, images(30), seen)))
    assert found["images"] == 30
    assert {"layer", "weight_bits", "agreement"} <= found["layers"][0].keys()
    assert len(found["statistics"]) == len(teacher.structure.norms)
    assert len(found["centres"]) == 20
    assert found["centres"][3]["requested"] == pytest.approx(seen.centres.requested[3].tolist(), abs=1e-3)
    assert len(found["attention"]) == 10
    assert all(max(map(max, heat)) == 1 for heat in found["attention"])
