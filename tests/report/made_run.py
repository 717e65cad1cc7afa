"""The folder of a small finished run without a run: the figures are made up, their names are those of the producers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from helpers import CLASSES
from PIL import Image

from acq.analysis.conditioning import Conditioning, GeneratorQuality
from acq.analysis.sensitivity import Sensitivity
from acq.config import Config
from acq.core.outputs import Traits
from acq.network.operators import Role
from acq.quantization.formats import NumberFormat
from acq.quantization.node_plan import NodePlan, Plan
from acq.runs.samples import STAGES
from acq.runs.summary import quality_figures
from acq.training.selection import Selection, StudentQuality

HOSTILE = "<script>alert('m')</script>"
SIDES = (12, 8)  # width and height of the images
LAYERS = tuple(f"block.{number}.conv" for number in range(12))  # the most sensitive one first
PLAN = Plan(
    NumberFormat.parse("w4a4", "8"),
    "deployable",
    (
        NodePlan("x", "", Role.IMAGE, None, 8, (-1, 3, 8, 12), ""),
        NodePlan("block.0.conv", "aten.conv2d.default", Role.CONVOLUTION, 8, None, (-1, 4), "", reduced_range=True),
        *(NodePlan(name, "aten.conv2d.default", Role.CONVOLUTION, 4, 4, (-1, 4), HOSTILE) for name in LAYERS[1:]),
        NodePlan("output", "", Role.MOVE, None, None, (-1, 5), "logits are not quantized"),
    ),
)


def make_run(folder: Path, *, stages: tuple[str, ...] = STAGES) -> Path:
    """Write the files that the page reads.

    Args:
        folder: A new folder.
        stages: The stages of the examples; only the last where images are as generated.
    """
    (folder / "samples").mkdir(parents=True)
    config = Config.create("fast", {"bits": "w4a4"}).fitted(Traits())
    rng = np.random.default_rng(0)
    write(folder, "summary.json", {"model": HOSTILE, **config.headline(), **_figures()})
    write(folder, "diagnostics.json", _diagnostics(rng))
    write(folder, "samples/samples.json", [_sample(folder, rng, index, stages) for index in range(4)])
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config.model_dump(mode="json")}))
    records = [
        {"phase": phase, "step": step, "steps": 4, "seconds": 1.0, "values": {"centre": 1 / step, "zero": 0.0}}
        for phase in ("generator", "images", HOSTILE)
        for step in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def add_latencies(folder: Path) -> None:
    rows = [
        {"threads": threads, "batch": batch, "float_ms": 2.0 * batch, "integer_ms": 1.0 * batch, "latency_ratio": 0.5}
        for threads in (1, 2)
        for batch in (1, 32)
    ]
    write(folder, "latency.json", {"latencies": rows})


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str, **values: Any) -> None:
    write(folder, name, read(folder, name) | values)


def _figures() -> dict[str, Any]:
    best = StudentQuality(loss=0.1, agreement=98.5, divergence=0.02)
    candidates = {"calibrated": StudentQuality(0.3, 90.0, 0.06), "trained": best}
    selection = Selection(candidates, "trained", best, 20.0, {"logits": 1.0, "features": 4.0})
    finished = Conditioning(correlation=0.95, spread=0.21, label_agreement=0.995, eval_train_similarity=0.98)
    generated = Conditioning(correlation=0.85, spread=0.19, label_agreement=0.9, eval_train_similarity=0.97)
    cost = {"device": "cpu", "threads": 1, "torch": "2.8", "seconds": 65.0, "peak_memory_mb": 1234, "steps": {}}
    stop = {"stopped": {"phase": "few", "step": 4, "reason": HOSTILE}}
    size = {
        "float_bytes": 1_000_000,
        "quantized_bytes": 150_000,
        "mean_weight_bits": 4.2,
        "float_operators": 0,
        "float_by_design": 0,
    }
    accuracy = {
        "test_images": 1000,
        "teacher_top1": 91.5,
        "top1": 90.0,
        "teacher_label_accuracy": None,
        "label_accuracy": None,
    }
    quality = quality_figures(
        selection, CLASSES, PLAN, finished, GeneratorQuality(generated, pair_distance=0.4, agreement=92.0)
    )
    output = {"kind": "class", "meaning": "5 classes", "size": 5, "counted": "logits", "returned": "logits"}
    return {"output": output, **cost, **stop, **size, **accuracy, **quality}


def _diagnostics(rng: np.random.Generator) -> dict[str, Any]:
    requested = rng.uniform(-0.8, 0.8, (20, 2)).round(3)
    layers = [
        Sensitivity(name, 144, 8 if number == 0 else 4, 4, 0.0, 1.5, 20.0, 10.0 + number, 99.0 + number / 20)
        for number, name in enumerate(LAYERS)
    ]
    return {
        "images": 256,
        "layers": [asdict(layer) for layer in reversed(layers)],
        "statistics": [{"layer": f"norm{number}", "mean": 0.1 * number, "deviation": 0.2} for number in range(3)],
        "centres": [
            {"label": index % 2, "requested": [*centre], "realised": [*(centre * 0.9)]}
            for index, centre in enumerate(requested)
        ],
        "spread": {"0": 0.2, "1": 0.25},
    }


def _sample(folder: Path, rng: np.random.Generator, index: int, stages: tuple[str, ...]) -> dict[str, Any]:
    files = {stage: f"{index:02d}-{stage}.png" for stage in stages}
    for name in files.values():
        pixels = rng.integers(0, 256, (*SIDES[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "samples" / name)
    return {
        "label": 3 - index,
        "class": 3,
        "requested": [0.5, -0.5],
        "realised": [0.0, 0.25],
        "attention": [[0.0, 1.0], [0.5, 0.0]],
        "files": files,
    }
