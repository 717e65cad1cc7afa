"""Measures how closely generated images follow their conditions, with and without each loss of ACQ.

    python benchmarks/conditioning.py resnet20-cifar10 --steps 300

Only generators are trained, all with the same seed and number of steps. The results are docs/benchmarks/conditioning.*.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from runs import Row, command, each, fence, keep, mean, origin, table, write_page

from acq import zoo
from acq.analysis.conditioning import generator_quality
from acq.config import Config
from acq.core.memory import keep_freed_memory
from acq.recipe import Request, prepare

VARIANTS = {  # preset, and losses with weight 0
    "all losses": ("default", ()),
    "no centre loss": ("default", ("centre",)),
    "no paired loss": ("default", ("paired",)),
    "no consistency loss": ("default", ("consistency",)),
    "gdfq": ("gdfq", ()),
}
COLUMNS = {
    "correlation": "centre correlation",
    "spread": "spread of centres",
    "label_agreement": "share of requested classes",
    "eval_train_similarity": "attention similarity, eval and train mode",
    "pair_distance": "pair distance",
    "losses.statistics": "statistics loss",
}
IMAGES = 1024


def measure(network: zoo.Network, variant: str, steps: int, seed: int, images: int = IMAGES) -> Row:
    """Train one generator and measure it on new conditions."""
    preset, off = VARIANTS[variant]
    losses = dict.fromkeys(off, 0.0)
    settings = {"generator": {"steps": steps, "losses": losses}, "calibration": {"first_student": False}}
    config = Config.create(preset, {"seed": seed, **settings})
    prepared = prepare(Request.of(network, config, {}))
    context = prepared.training.context
    for record in prepared.training.run():
        if (record.phase, record.step) == ("generator", record.steps):
            break
    rng = torch.Generator(context.rng.device).manual_seed(seed + 1)
    # the student is not part of this benchmark, so the teacher takes its place
    found = generator_quality(context.generator, context.teacher, context.teacher, context.conditions, images, rng)
    return {
        "model": network.name,
        "variant": variant,
        "seed": seed,
        "steps": steps,
        **asdict(found.conditioning),
        "pair_distance": found.pair_distance,
        "losses": record.values,
        "seconds": record.seconds,
        "device": str(context.rng.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **origin(),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--images", type=int, default=IMAGES, help="generated images that are measured")
    args = parser.parse_args(words)
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    for variant in args.only:
        row = measure(network, variant, args.steps, args.seed, args.images)
        row["command"] = command(__file__, words)
        rows = keep("conditioning", row, ("model", "variant", "seed", "steps"))
        lines = [
            [row["variant"], row["steps"], row["seed"], *(mean([row], key) for key in COLUMNS), round(row["seconds"])]
            for row in rows
        ]
        titles = ["generator", "steps", "seed", *COLUMNS.values(), "seconds"]
        note = f"Device {each(rows, 'device')}, {each(rows, 'threads')} threads, torch {each(rows, 'torch')}, "
        note += f"commit {each(rows, 'commit')}. Only the generator is trained."
        page = [table(titles, lines), [note], fence(row["command"] for row in rows)]
        print(write_page("conditioning", "Conditioning of generated images", *page), flush=True)


if __name__ == "__main__":
    main()
