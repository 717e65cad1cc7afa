"""Measures the student on real training images: the ceiling for synthetic ones.

    python benchmarks/ceiling.py resnet20-cifar10 --images train.npz --data test.npz --bits w4a4 w3a3

``--images`` is a .npz file of real images and labels; the labels are not used. Calibration, training and conversion
are those of the preset. Each run becomes a row of docs/benchmarks/ceiling.json, from which the page is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from runs import Row, accuracy_table, arguments, command, configs, fence, keep, origin, settings_of, write_page

from acq import zoo
from acq.config import Config
from acq.core.memory import keep_freed_memory
from acq.core.pixels import from_bytes
from acq.files.images import read
from acq.recipe import Request, prepare
from acq.runs.summary import accuracy_figures, cost_figures
from acq.synthesis.dataset import SyntheticDataset

KEYS = ("model", "bits", "placement", "first_last_bits", "add_bits", "preset", "real_images")


def measure(network: zoo.Network, config: Config, real: Path, count: int, data: Path) -> Row:
    """Train a student on ``count`` real images, drawn by the seed, and measure it on others."""
    prepared = prepare(Request.of(network, config, {}))
    training, context, known = prepared.training, prepared.training.context, network.preprocessing
    output = context.teacher.output
    images = read(real, preprocessing=known, output=output).images[:]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[:count]
    pixels = from_bytes(images[chosen.numpy()], known).to(context.rng.device, memory_format=torch.channels_last)
    batch = context.teach(pixels)
    context.dataset = SyntheticDataset(batch, output.parts[0].answered(batch.logits), pixels.new_zeros(len(pixels), 2))
    training.current = "calibration"
    for _ in training.run():
        pass
    labelled = read(data, preprocessing=known, output=output)
    cost = cost_figures(training)
    return {
        "model": network.name,
        **config.headline(),
        "settings": settings_of(config),
        "real_images": len(pixels),
        **cost,
        "steps": {"student": cost["steps"]["student"]},
        "agreement": round(context.selection.final.agreement, 2),
        **accuracy_figures(context.teacher, context.student, known, labelled),
        **origin(),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="real images: .npz or a folder of classes")
    parser.add_argument("--count", type=int, default=8192, help="how many of them are used")
    args = parser.parse_args(words)
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    for config in configs(args):
        row = measure(network, config, args.images, args.count, args.data)
        row["command"] = command(__file__, words)
        rows = keep("ceiling", row, (*KEYS, "settings", "seed"))
        head = ["The student is calibrated and trained on real images, everything else as in a run without data."]
        lines = accuracy_table(rows, KEYS, {"agreement": "agreement %"})
        print(write_page("ceiling", "Ceiling", head, lines, fence(found["command"] for found in rows)), flush=True)


if __name__ == "__main__":
    main()
