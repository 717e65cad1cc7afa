"""The same student engine on real training images: the reference that synthetic images are measured against.

    python benchmarks/ceiling.py resnet20-cifar10 --images train.npz --data test.npz --bits w4a4 w3a3 --ends same

`--images` is an .npz of real images and labels (the labels are not used). Steps, views and losses are those of the
preset; only the pool differs. Writes JSON and a Markdown table; run by hand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accuracy import save, top1_of

from acq import zoo
from acq.config import Config
from acq.data import batches, normalise, read
from acq.evaluate import accuracy
from acq.pool import Pool
from acq.pool import read as read_by
from acq.recipe import Request, prepare
from acq.trainer import train


def measure(network: zoo.Network, config: Config, real: Path, count: int, data: Path) -> dict[str, Any]:
    """Train a student on ``count`` real images, drawn by the seed, and report its accuracy on others."""
    request = Request(network.model, network.preprocessing, config, {})
    trainer = prepare(request)
    known = {"input_size": network.preprocessing.input_size, "classes": trainer.teacher.classes}
    images = read(real, **known).images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[:count]
    pixels = normalise(images[chosen.numpy()], network.preprocessing).contiguous(memory_format=torch.channels_last)
    trainer.pool = Pool(read_by(pixels.to(trainer.rng.device), trainer.teacher))
    trainer.phase = "calibration"
    start = time.perf_counter()
    for _ in train(trainer):
        pass
    seconds = time.perf_counter() - start
    top1 = accuracy(trainer.student, batches(read(data, **known), network.preprocessing), trainer.rng.device)
    return {"bits": config.bits, "seed": config.seed, "count": len(pixels), "top1": round(top1, 2), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ends", default="same")
    parser.add_argument("--addends", default=8)
    parser.add_argument("--preset", default="default")
    args = parser.parse_args()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    lines = ["| bits | real images | seeds | top-1 % | seconds |", "|---" * 5 + "|"]
    results = []
    for bits in args.bits:
        runs = []
        for seed in args.seeds:
            config = Config.create(
                args.preset, {"bits": bits, "ends": args.ends, "addends": args.addends, "seed": seed}
            )
            runs.append(measure(network, config, args.images, args.count, args.data))
            print(runs[-1], flush=True)
        results += runs
        seconds = statistics.mean(run["seconds"] for run in runs)
        lines.append(f"| {bits} | {runs[0]['count']} | {len(runs)} | {top1_of(runs)} | {seconds:.0f} |")
    seeds = " ".join(map(str, args.seeds))
    command = (
        f"python benchmarks/ceiling.py {args.model} --images {args.images.name} --data {args.data.name} "
        f"--count {args.count} --bits {' '.join(args.bits)} --seeds {seeds} --ends {args.ends} "
        f"--addends {args.addends} --preset {args.preset}"
    )
    where = f"student phase alone, addends {args.addends}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    save("ceiling", command, results, lines, where)


if __name__ == "__main__":
    main()
