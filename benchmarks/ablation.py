"""Measures accuracy with one part of the method removed at a time, and with images as GDFQ generates them.

    python benchmarks/ablation.py resnet20-cifar10 --data test.npz --bits w4a4 w3a3 --seeds 0 1 2

``gdfq`` does not refine images. ``--gdfq-steps`` gives its generator so many steps that all variants take equally long.
With ``--no-refinement`` no variant refines images and all have these steps, so only the generator's losses differ.
Each run becomes a row of docs/benchmarks/ablation.json, from which the page is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from runs import Row, accuracy_table, arguments, command, configs, fence, keep, quantized, write_page

from acq import zoo
from acq.config import Config
from acq.core.memory import keep_freed_memory
from acq.files.documents import assignment
from acq.presets import PRESETS

NO_REFINEMENT = ["images.steps=0", "images.count=4096", "student.renew_count=128"]
# variants that share their images stand together, because neighbours make them once
REMOVED = {
    "all parts": [],
    "no augmentation": ["student.augmentation=0"],
    "no equalization": ["calibration.equalization=false"],
    "no rounding": ["calibration.rounding=false"],
    "no training": ["student.steps=0"],
    "no class loss": ["generator.losses.classes=0", "images.losses.classes=0"],
    "no statistics loss": ["generator.losses.statistics=0", "images.losses.statistics=0"],
    "no centre loss": ["generator.losses.centre=0", "images.losses.centre=0"],
    "no paired loss": ["generator.losses.paired=0"],
    "no consistency loss": ["generator.losses.consistency=0"],
    "no scenes": ["images.scene=0"],
    "scenes only": ["generator.steps=1", "images.scene=1"],
    "no refinement": NO_REFINEMENT,
}
GDFQ = "gdfq"
GENERATED = [*NO_REFINEMENT, "calibration.first_student=false", "student.round_steps=0"]
KEYS = ("variant", "bits", "device")
IDENTITY = ("model", "variant", "bits", "placement", "first_last_bits", "add_bits", "device", "settings", "seed")
FIGURES = {
    "agreement": "agreement %",
    "attention.correlation": "centre correlation, refined",
    "generator.correlation": "centre correlation, generated",
    "generator.pair_distance": "pair distance",
}
NOTE = """\
- **Drop** is in percentage points, and seconds are the mean per run.
- **Agreement** is the percentage of augmented refined images for which student and float network name the same class.
- **Centre correlation** compares requested and realised attention centres, 1 at best.
- **Pair distance** is the relative distance of the features of two generated images with one condition.
- A dash stands for a figure that was not measured.""".splitlines()


def planned(args: argparse.Namespace) -> Iterator[tuple[str, Config]]:
    """Name and configuration of every run, in an order in which many neighbours share their images."""
    steps: dict[str, Any] = {"generator": {"steps": args.gdfq_steps}}
    unrefined = [*map(assignment, NO_REFINEMENT), steps] if args.no_refinement else []
    for seed in args.seeds:
        one = argparse.Namespace(**{**vars(args), "seeds": [seed]})
        for variant in args.only:
            name, changes = variant, [{"generator": PRESETS[GDFQ]["generator"]}, *map(assignment, GENERATED), steps]
            if variant != GDFQ:
                name = f"{variant}, unrefined" if unrefined else variant
                changes = [*map(assignment, REMOVED[variant]), *unrefined]
            yield from ((name, config) for config in configs(one, *changes))


def write(rows: Sequence[Row]) -> str:
    """Write and return the page."""
    head = ["The last training step is measured. Real images only measure the accuracy."]
    remarks = list(dict.fromkeys(f"- {remark}" for row in rows for remark in row.get("remarks", [])))
    lines = accuracy_table(rows, KEYS, FIGURES)
    return write_page("ablation", "Ablation", head, lines, [*NOTE, *remarks], fence(row["command"] for row in rows))


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", default=[*REMOVED, GDFQ], choices=[*REMOVED, GDFQ], metavar="VARIANT")
    parser.add_argument("--gdfq-steps", type=int, default=900, metavar="N", help="generator steps of gdfq")
    parser.add_argument("--no-refinement", action="store_true", help="refine the images of no variant")
    args = parser.parse_args(words)
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    plan = list(planned(args))
    runs = quantized(network, (config for _, config in plan), args.data)
    for (variant, _), figures in zip(plan, runs, strict=True):
        row = {"variant": variant, **figures, "command": command(__file__, words)}
        print(write(keep("ablation", row, IDENTITY)), flush=True)


if __name__ == "__main__":
    main()
