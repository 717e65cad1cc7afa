"""Where a run's time goes: seconds a step in each phase, the operators that take most of it, and peak memory.

    python benchmarks/speed.py resnet20-cifar10 --bits w4a4

Takes a few steps of each phase of the default preset, the first ones of each left out. Writes JSON and a Markdown
table; run by hand, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from runs import COMMIT, RESULTS, command, page
from torch.profiler import ProfilerActivity, profile

from acq import zoo
from acq.config import Config
from acq.recipe import Request, prepare
from acq.runs.folder import write_text
from acq.runs.malloc import keep_freed_memory
from acq.runs.summary import peak_memory_mb
from acq.training.trainer import train

WARM = 3  # steps of a phase that are not counted


def measure(network: zoo.Network, config: Config, steps: int) -> list[dict[str, Any]]:
    """Seconds a step of each phase, and what the whole phase of the preset would take."""
    trainer = prepare(Request(network.model, network.preprocessing, _shortened(config, steps), {}))
    seconds: dict[str, list[float]] = {}
    clock = time.perf_counter()
    for record in train(trainer):
        now = time.perf_counter()
        seconds.setdefault(record.phase, []).append(now - clock)
        clock = now
    assert config.images.batch
    assert config.images.count
    assert config.student.steps is not None
    batches = -(-config.images.count // config.images.batch)
    whole = {
        "generator": config.generator.steps,
        "images": config.images.steps * batches,
        "calibration": 1,
        "student": config.student.steps,
        "freezing": 1,
    }
    rows = []
    for phase, times in seconds.items():
        step = statistics.median(times[WARM:] or times)
        rows.append({"phase": phase, "step": step, "steps": whole[phase], "seconds": step * whole[phase]})
    return rows


def hot_spots(network: zoo.Network, config: Config, top: int) -> list[dict[str, Any]]:
    """The operators with the most time of their own over a short run, in percent."""
    trainer = prepare(Request(network.model, network.preprocessing, _shortened(config, WARM), {}))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in train(trainer):
            pass
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in averages)
    return [{"operator": row.key, "percent": 100 * row.self_cpu_time_total / total} for row in averages[:top]]


def _shortened(config: Config, steps: int) -> Config:
    short = {"steps": steps}
    count = {"count": config.images.batch}
    return Config.create(
        config.preset, config.model_dump(), {"generator": short, "images": short | count, "student": short}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    config = Request(network.model, network.preprocessing, Config.create(args.preset, {"bits": args.bits}), {}).config
    rows = measure(network, config, args.steps)
    memory = peak_memory_mb(torch.device("cpu"))  # before the profiler, which holds a record of every call
    hot = hot_spots(network, config, 10)
    lines = ["| phase | ms a step (median) | steps | seconds |", "|---" * 4 + "|"]
    lines += [f"| {r['phase']} | {1e3 * r['step']:.0f} | {r['steps']} | {r['seconds']:.0f} |" for r in rows]
    lines += [
        "",
        "| operator | share of time % |",
        "|---|---|",
        *(f"| {h['operator']} | {h['percent']:.1f} |" for h in hot),
    ]
    where = f"Peak memory {memory} MB, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {COMMIT}."
    print(page("speed", lines, where, [command()]))
    found = {"command": command(), "commit": COMMIT, "phases": rows, "hot_spots": hot, "peak_memory_mb": memory}
    write_text(RESULTS / "speed.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
