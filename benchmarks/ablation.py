"""What each part is worth: accuracy and attention figures with each part off in turn, and of the `gdfq` preset.

    python benchmarks/ablation.py resnet20-cifar10 --data test.npz --bits w4a4 w3a3 --seeds 0 1 2 --ends same

Each run is a process of its own, as a user would start it. Writes JSON and a Markdown table; run by hand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from accuracy import quantize, save, top1_of

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
}
COLUMNS = ("correlation", "spread", "label_agreement", "pair_distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--only", nargs="+", default=[*OFF, "gdfq"], help="these variants alone")
    args, passed_on = parser.parse_known_args()
    lines = [
        f"| bits | variant | seeds | top-1 % | {' | '.join(COLUMNS)} | seconds |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]
    everything = []
    for bits in args.bits:
        for variant in args.only:
            changes = [word for change in OFF.get(variant, []) for word in ("--set", change)]
            preset = ["--preset", "gdfq"] if variant == "gdfq" else []
            common = [args.model, "--bits", bits, *preset, *changes, *passed_on]
            runs = [quantize([*common, "--seed", seed]) for seed in args.seeds]
            everything += [{"variant": variant, **run} for run in runs]
            figures = [statistics.mean(run["attention"][name] for run in runs) for name in COLUMNS]
            cells = [top1_of(runs), *(f"{figure:.3f}" for figure in figures)]
            seconds = statistics.mean(run["seconds"] for run in runs)
            lines.append(f"| {bits} | {variant} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    first = everything[0]
    command = "python benchmarks/ablation.py " + " ".join(Path(a).name if "/" in a else a for a in sys.argv[1:])
    where = f"teacher {first['teacher_top1']} %; {first['device']}, {first['threads']} threads, torch {first['torch']}"
    save("ablation", command, everything, lines, where)


if __name__ == "__main__":
    main()
