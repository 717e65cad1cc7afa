"""What each ACQ part does to the generator: control figures with all parts, with each one off, and as `gdfq`.

    python benchmarks/control.py resnet20-cifar10 --steps 300

Trains generators alone, with equal steps and seed, and writes JSON and a Markdown table; run by hand.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from runs import RESULTS, command, page

from acq import zoo
from acq.analysis.conditioning import fresh_steps, review
from acq.config import Config
from acq.recipe import Request, prepare
from acq.runs.folder import write_text
from acq.training.trainer import train

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "acq (all parts)": ("default", []),
    "no centre matching": ("default", ["centre"]),
    "no paired loss": ("default", ["paired"]),
    "no consistency": ("default", ["consistency"]),
    "gdfq (none)": ("gdfq", []),
}


def measure(network: zoo.Network, preset: str, off: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Train one generator and look at it on fresh conditions."""
    losses = dict.fromkeys(off, 0.0)
    config = Config.create(preset, {"seed": seed, "generator": {"steps": steps, "losses": losses}})
    trainer = prepare(Request(network.model, network.preprocessing, config, {}))
    start = time.perf_counter()
    values: dict[str, float] = {}
    for record in train(trainer):
        values = record.values or values
        if record.phase == "generator" and record.step == record.steps:
            break
    seconds = time.perf_counter() - start
    rng = torch.Generator(trainer.rng.device).manual_seed(seed + 1)
    settings = config.generator
    conditions = {"noise_dim": settings.noise_dim, "spread": settings.spread, "rng": rng}
    seen = review(fresh_steps(trainer.generator, trainer.teacher, 1024, **conditions))
    return {**asdict(seen.control), "losses": values, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    names = ["correlation", "spread", "label_agreement", "eval_train_similarity", "pair_distance"]
    lines = [f"| generator | {' | '.join(names)} | statistics | seconds |", "|---" * (len(names) + 3) + "|"]
    results = {}
    for variant, (preset, off) in VARIANTS.items():
        found = results[variant] = measure(network, preset, off, args.steps, args.seed)
        cells = [f"{found[name]:.3f}" for name in names]
        cells += [f"{found['losses']['statistics']:.3f}", f"{found['seconds']:.0f}"]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    where = f"Generators alone, {torch.get_num_threads()} threads, torch {torch.__version__}."
    page("control", lines, where, [command()])
    write_text(RESULTS / "control.json", json.dumps({"command": command(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
