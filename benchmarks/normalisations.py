"""Ranks the usual normalisations for networks whose own one is known, and for small ones that it trains.

    python benchmarks/normalisations.py --data test.npz

``--data`` is an ``.npz`` file of images and labels. On these a small network per normalisation is trained for an epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from acq import zoo
from acq.analysis.normalisation import doubt, fits
from acq.core.normalisations import Normalisation, usual_normalisations
from acq.core.pixels import from_bytes
from acq.core.values import Preprocessing
from acq.network.teacher import Teacher
from acq.network.trace import trace

CIFAR = Normalisation("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
_BATCH, _RATE = 64, 3e-3


def plain(width: int = 16) -> nn.Module:
    """Convolutions, each with a batch norm and a ReLU."""
    return nn.Sequential(
        *_block(3, width), *_block(width, 2 * width, 2), *_block(2 * width, 4 * width, 2), *_head(4 * width)
    )


def late(width: int = 16) -> nn.Module:
    """The first batch norm stands behind two convolutions and a pool."""
    first = nn.Sequential(
        nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.MaxPool2d(2)
    )
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), *_block(width, 2 * width), *_head(2 * width))


def trained(
    make: Callable[[], nn.Module], images: np.ndarray, labels: np.ndarray, known: Preprocessing, seed: int
) -> nn.Module:
    """A network after an epoch on images [N, H, W, C]."""
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    for part in torch.randperm(len(images)).split(_BATCH):
        loss = F.cross_entropy(network(from_bytes(images[part], known)), torch.from_numpy(labels)[part].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def small_networks(data: Path) -> Iterator[tuple[str, nn.Module, Preprocessing]]:
    """A network of each kind for each normalisation."""
    with np.load(data) as file:
        images, labels = file["images"], file["labels"]
    size = (images.shape[3], *images.shape[1:3])
    for name, make in (("plain", plain), ("late", late)):
        for seed, right in enumerate([*usual_normalisations(3), CIFAR]):
            known = Preprocessing(size, right.mean, right.std)
            yield f"{name}, trained with {right.name}", trained(make, images, labels, known, seed), known


def _block(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def line(name: str, model: nn.Module, known: Preprocessing) -> str:
    """A row: distances, the rank of the right normalisation, and of how many wrong ones the command would warn."""
    teacher = Teacher(trace(model, known.input_size))
    right, *usual = fits(teacher, known)
    others = [fit for fit in usual if (fit.normalisation.mean, fit.normalisation.std) != (known.mean, known.std)]
    rank = 1 + sum(fit.distance < right.distance for fit in others)
    warned = 0
    for wrong in others:
        given = replace(known, mean=wrong.normalisation.mean, std=wrong.normalisation.std)
        known_too = [wrong, *usual, right]
        warned += doubt(known_too) is not None and given != known
    cells = [name, f"{right.distance:.3f}", *(f"{fit.distance:.3f}" for fit in usual), str(rank)]
    return f"| {' | '.join(cells)} | {warned} of {len(others)} | {'yes' if doubt([right, *usual]) else 'no'} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args(words)
    names = [each.name for each in usual_normalisations(3)]
    head = ["network", "right", *names, "rank", "warned of wrong ones", "false alarm"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name in zoo.builtin_names():
        network = zoo.resolve(name)
        print(line(name, network.model, network.preprocessing), flush=True)
    for name, model, known in small_networks(args.data):
        print(line(name, model, known), flush=True)


if __name__ == "__main__":
    main()
