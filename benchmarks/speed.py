"""Measures the time per step of each phase, the operators that take most of it, and peak memory.

    python benchmarks/speed.py resnet20-cifar10 --bits w4a4

A few steps of each phase are run. The first ones are left out. Use a machine on which nothing else runs. The results
are docs/benchmarks/speed.*.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from runs import Row, command, fence, keep, origin, table, write_page
from torch.profiler import ProfilerActivity, profile

from acq import zoo
from acq.config import Config
from acq.core.memory import keep_freed_memory, peak_memory_mb
from acq.core.values import Record
from acq.files.documents import assignment
from acq.recipe import Prepared, Request, prepare
from acq.training.images import ImageRefinement

WARM_UP = 3  # steps of a phase that are left out
OPERATORS = 10


def prepared(network: zoo.Network, config: Config) -> Prepared:
    """A run before its first step."""
    return prepare(Request.of(network, config, {}))


def shortened(network: zoo.Network, config: Config, steps: int) -> Prepared:
    """The run with ``steps`` steps per phase and one batch of images."""
    images = prepared(network, config).training.phases["images"]
    assert isinstance(images, ImageRefinement)
    of_images = {"steps": steps, "count": images.batch}
    few: dict[str, Any] = {"generator": {"steps": steps}, "images": of_images, "student": {"steps": steps}}
    few["calibration"] = {"enough": 0.0}  # no early end: every phase is measured
    return prepared(network, Config.create(config.preset, config.model_dump(), few))


def phases(network: zoo.Network, config: Config, steps: int) -> list[Row]:
    """Seconds per step of each phase, and of the whole phase with the steps of ``config``."""
    whole = prepared(network, config).training.phases
    seconds: dict[str, list[float]] = {}
    training = shortened(network, config, steps).training
    before = training.seconds
    for record in training.run():
        seconds.setdefault(record.phase, []).append(record.seconds - before)
        before = record.seconds
    rows = []
    for name, times in seconds.items():
        step, count = statistics.median(times[WARM_UP:] or times), whole[name].steps
        rows.append({"phase": name, "step": step, "steps": count, "seconds": step * count})
    return rows


def operators(network: zoo.Network, config: Config) -> list[Row]:
    """The operators with the most time of their own while images are made and the student is trained, in percent.

    The first student, calibration and conversion are left out: they call so many operators that a profile takes
    gigabytes.
    """
    shortest = shortened(network, config, WARM_UP).training
    records = shortest.run()
    if "first" in shortest.phases:
        finish("first", records)
    with profile(activities=[ProfilerActivity.CPU]) as making_images:
        finish("images", records)
    finish("calibration", records)
    with profile(activities=[ProfilerActivity.CPU]) as training:
        finish("student", records)
    times: Counter[str] = Counter()
    for row in (*making_images.key_averages(), *training.key_averages()):
        times[row.key] += row.self_cpu_time_total
    return [{"operator": name, "percent": 100 * time / times.total()} for name, time in times.most_common(OPERATORS)]


def finish(phase: str, records: Iterator[Record]) -> None:
    """Run up to the last step of a phase."""
    next(record for record in records if (record.phase, record.step) == (phase, record.steps))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--steps", type=int, default=15, help="steps of each phase that are measured")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(words)
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    config = Config.create(args.preset, {"bits": args.bits, "device": "cpu"}, *map(assignment, args.set))
    found: dict[str, Any] = {"model": args.model, "bits": args.bits, "preset": args.preset}
    found["phases"] = phases(network, config, args.steps)
    found["peak_memory_mb"] = peak_memory_mb(torch.device("cpu"))  # before the profiler, which records every call
    found["operators"] = operators(network, config)
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__, **origin()}
    found["command"] = command(__file__, words)
    rows = keep("speed", found, ("model", "bits", "preset"))
    print(write_page("speed", "Speed", *(part for row in rows for part in parts(row))), flush=True)


def parts(row: Row) -> list[list[str]]:
    """The part of the page on one network and bit-width."""
    steps = [[p["phase"], f"{1e3 * p['step']:.0f}", p["steps"], f"{p['seconds']:.0f}"] for p in row["phases"]]
    shares = [[f"`{o['operator']}`", f"{o['percent']:.1f}"] for o in row["operators"]]
    where = f"{row['threads']} threads, torch {row['torch']}, commit {row['commit']}, {row['date']}."
    return [
        [f"## {row['model']}, {row['bits']}, preset {row['preset']}"],
        table(["phase", "ms per step (median)", "steps", "seconds"], steps),
        table(["operator", "share of time %"], shares),
        [f"Peak memory {row['peak_memory_mb']} MB. {where}"],
        fence([row["command"]]),
    ]


if __name__ == "__main__":
    main()
