"""What each part is worth: accuracy and attention figures with each part off in turn, and of the `gdfq` preset.

    python benchmarks/ablation.py resnet20-cifar10 --data test.npz --bits w4a4 w3a3 --seeds 0 1 2 --ends same

Writes JSON and a Markdown table that grow run by run, like those of `accuracy.py`; run by hand. The `gdfq` preset
finishes no images: `--gdfq-steps` gives its generator the steps that make its wall time that of the others. With
`--as-generated` no variant finishes images and all have these steps, so that what differs is the generator's losses.
"""

from __future__ import annotations

from typing import Any

from runs import arguments, configs, keep, quantized, table

from acq import zoo
from acq.files.limits import assignment
from acq.runs.malloc import keep_freed_memory

OFF = {
    "all parts": [],
    "no class loss": ["generator.losses.classes=0", "images.losses.classes=0"],
    "no statistics": ["generator.losses.statistics=0", "images.losses.statistics=0"],
    "no centre": ["generator.losses.centre=0", "images.losses.centre=0"],
    "no paired loss": ["generator.losses.paired=0"],
    "no consistency": ["generator.losses.consistency=0"],
    "no scenes": ["images.scene=0"],
    "scenes alone": ["generator.steps=1", "images.scene=1"],
    "no finishing": ["images.steps=0", "images.count=4096", "images.renew_count=128"],
    "no views": ["student.views=0"],
    "no equalization": ["student.equalization=false"],
    "no rounding": ["student.rounding=false"],
    "no training": ["student.steps=0"],
}
FIGURES = ("agreement", "correlation", "spread", "label_agreement", "pair_distance")
KEYS = ("bits", "variant", "addends", "device")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", default=[*OFF, "gdfq"], help="these variants alone")
    parser.add_argument("--gdfq-steps", type=int, default=900, help="generator steps of the gdfq preset")
    parser.add_argument("--as-generated", action="store_true", help="finish the images of no variant")
    args = parser.parse_args()
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    steps: dict[str, Any] = {"generator": {"steps": args.gdfq_steps}}
    as_generated = [*map(assignment, OFF["no finishing"]), steps] if args.as_generated else []
    for variant in args.only:
        if variant == "gdfq":  # finishes none anyway
            name, changes = variant, [{"preset": "gdfq"}, steps]
        else:
            name = f"{variant}, as generated" if as_generated else variant
            changes = [*map(assignment, OFF[variant]), *as_generated]
        for run in quantized(network, configs(args, *changes), args.data):
            found = keep("ablation", {"variant": name, **run}, (*KEYS, "placement", "settings", "seed"))
            print(table("ablation", found, KEYS, FIGURES), flush=True)


if __name__ == "__main__":
    main()
