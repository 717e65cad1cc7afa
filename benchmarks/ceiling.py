"""The same student engine on real training images: the reference that synthetic images are measured against.

    python benchmarks/ceiling.py resnet20-cifar10 --images train.npz --data test.npz --bits w4a4 w3a3 --ends same

`--images` is an .npz of real images and labels (the labels are not used). Steps, views and losses are those of the
preset; only the pool differs. Writes JSON and a Markdown table that grow run by run; run by hand.
"""

from __future__ import annotations

from pathlib import Path

import torch
from runs import COMMIT, Run, arguments, configs, keep, table

from acq import zoo
from acq.config import Config
from acq.files.images import normalise, read
from acq.recipe import Request, prepare
from acq.runs.malloc import keep_freed_memory
from acq.runs.summary import accuracy_figures, peak_memory_mb
from acq.synthesis.dataset import SyntheticDataset
from acq.synthesis.dataset import read as read_by
from acq.training.trainer import train

KEYS = ("bits", "count", "placement", "ends", "addends", "preset")


def measure(network: zoo.Network, config: Config, real: Path, count: int, data: Path) -> Run:
    """Train a student on ``count`` real images, drawn by the seed, and report its accuracy on others."""
    trainer = prepare(Request(network.model, network.preprocessing, config, {}))
    known = {"input_size": network.preprocessing.input_size, "classes": trainer.teacher.classes}
    images = read(real, **known).images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[:count]
    pixels = normalise(images[chosen.numpy()], network.preprocessing).contiguous(memory_format=torch.channels_last)
    trainer.pool = SyntheticDataset(read_by(pixels.to(trainer.rng.device), trainer.teacher))
    trainer.phase = "calibration"
    for _ in train(trainer):
        pass
    return {
        "commit": COMMIT,
        "count": len(pixels),
        **config.model_dump(mode="json", include={"bits", "placement", "ends", "addends", "preset", "seed"}),
        "device": str(trainer.rng.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(trainer.seconds, 1),
        "peak_memory_mb": peak_memory_mb(trainer.rng.device),
        **accuracy_figures(trainer.teacher, trainer.student, network.preprocessing, read(data, **known)),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8192)
    args = parser.parse_args()
    keep_freed_memory()
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    for config in configs(args):
        run = measure(network, config, args.images, args.count, args.data)
        print(table("ceiling", keep("ceiling", run, (*KEYS, "seed")), KEYS, ()), flush=True)


if __name__ == "__main__":
    main()
