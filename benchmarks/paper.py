"""Runs the table of ACQ's paper on ImageNet with your weights and images: ResNet-18 and ResNet-50 at W4A4.

    python benchmarks/paper.py --resnet18 resnet18.pth --images imagenet/val --device cuda
    python benchmarks/paper.py --resnet18 resnet18.pth --resnet50 resnet50.pth --images imagenet/val --processes 4

Weights have the names of torchvision's. The folder of images has one folder for each of the 1,000 classes in class
order, such as the synsets of ImageNet's validation images, and images of any size. They are read afterwards, to report
the accuracy. With several processes each has a GPU of its own. Each run becomes a row of docs/benchmarks/paper.json at
once. A run that has its row is skipped. An interrupted run continues if no file was changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import conformance
import numpy as np
import runs
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import acq
from acq import zoo
from acq.config import Config
from acq.core.device import choose_device
from acq.core.evaluate import accuracy
from acq.core.outputs import Output
from acq.core.pixels import from_bytes
from acq.core.values import Preprocessing
from acq.files.documents import assignment
from acq.files.image_files import SUFFIXES
from acq.presets import AS_GENERATED

NAME = "paper"
PUBLISHED = {"resnet18": 3.9, "resnet50": 5.5}  # points that ACQ loses at W4A4, arXiv 2301.07266
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which torchvision's weights were trained
CLASSES = 1000
RESIZED = 256 / 224  # shorter side of an image, in sides of the square that is cut out of it
IDENTITY = ("network", "weights", "side", "preset", "bits", "seed", "settings")
LINE = tuple(key for key in IDENTITY if key != "seed")  # rows of one line of the table
HOW = [
    "The presets `acq` and `gdfq` are the setting of the papers on the user's own weights and images.",
    "All layers have the bits of the row. Published is what the paper's ACQ loses.",
    "",
    "The paper trains longer: `--set generator.steps=N student.steps=N` gives both more steps.",
]


class Photographs(Dataset[tuple[Tensor, int]]):
    """The middle of each image of a folder of classes, normalised, and its class.

    Args:
        folder: One folder per class, in class order.
        preprocessing: Size and normalisation; images are square.

    Raises:
        SystemExit: There is another number of folders than of classes, or no image.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        images = [[file for file in sorted(each.iterdir()) if file.suffix.lower() in SUFFIXES] for each in folders]
        self.files = [(file, label) for label, files in enumerate(images) for file in files]
        if not self.files or len(folders) != CLASSES:
            found = f"{len(folders)} folders with {len(self.files)} images"
            raise SystemExit(f"error: {folder} has {found}; give a folder with {CLASSES} folders, one per class")
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            pixels = np.asarray(middle(image.convert("RGB"), self.preprocessing.input_size[1]))
        return from_bytes(pixels[None], self.preprocessing)[0], label


def middle(image: Image.Image, side: int) -> Image.Image:
    """The square of ``side`` pixels in the middle of an image whose shorter side is resized to 8/7 of that.

    Sides are rounded as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    factor = Fraction(round(RESIZED * side), min(image.size))  # exact, so the shorter side is what it is to be
    width, height = (max(side, int(factor * length)) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))


def measure(wanted: runs.Row, images: Photographs, args: argparse.Namespace) -> runs.Row:
    """Quantize in new processes and measure teacher and student.

    Args:
        wanted: What identifies the run, the keys of ``IDENTITY``.
        images: Which measure the accuracy.
        args: Of the command line.

    Raises:
        RuntimeError: The run failed.
    """
    network, side = wanted["network"], args.side
    model, weights = f"networks.imagenet_resnets:{network}", getattr(args, network).resolve()
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
    folder = args.runs.resolve() / runs.COMMIT / f"{network}-{wanted['preset']}-{wanted['bits']}-{key}"
    words = ["quantize", model, "--checkpoint", str(weights), "--preset", wanted["preset"], "--bits", wanted["bits"]]
    words += ["--input-size", f"3,{side},{side}", "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    words += ["--seed", str(wanted["seed"]), "--device", args.device, "--out", str(folder)]
    words += ["--no-export", "--json", "--quiet", *(word for change in args.set for word in ("--set", change))]
    if (folder / "config.yaml").exists():
        words.append("--overwrite" if runs.COMMIT.endswith("-dirty") else "--resume")
    summary = json.loads(conformance.acq(words, Path(__file__).parent, args.processes))
    teacher = zoo.resolve(model, checkpoint=weights, input_size=(3, side, side), mean=MEAN, std=STD).model
    return {
        **wanted,
        "teacher_top1": top1(teacher, images, args), "top1": top1(acq.load(folder), images, args),
        "test_images": len(images), "seconds": summary["seconds"], "peak_memory_mb": summary["peak_memory_mb"],
        "remarks": [f"{conformance.machine()}, {args.processes} processes"], **runs.origin(),
    }  # fmt: skip


def top1(network: torch.nn.Module, images: Photographs, args: argparse.Namespace) -> float:
    """Top-1 in percent."""
    loader, device = DataLoader(images, args.batch, num_workers=args.workers), choose_device(args.device)
    return round(accuracy(network.to(device), loader, Output.of("class", CLASSES), device).percent, 2)


def page(rows: Sequence[runs.Row]) -> str:
    """Write and return the page."""
    keys = ("network", "side", "preset", "bits")
    titles = [*keys, "seeds", "float", "top-1 %", "loss", "published", "seconds", "commit"]
    lines = [
        [
            *(group[0][key] for key in keys), runs.each(group, "seed"),
            f"{statistics.mean(row['teacher_top1'] for row in group):.2f}", runs.top1(group), runs.drop(group),
            PUBLISHED[group[0]["network"]] if _is_published(group[0]) else None,
            runs.mean(group, "seconds", ".0f"), runs.each(group, "commit"),
        ]
        for group in runs.groups(rows, LINE)
    ]  # fmt: skip
    return runs.write_page(NAME, "The table of the paper", HOW, runs.table(titles, lines))


def _is_published(row: runs.Row) -> bool:
    return (row["preset"], row["bits"], row["side"]) == ("acq", "w4a4", 224)


def missing(args: argparse.Namespace) -> Iterator[runs.Row]:
    """What identifies each run that has no row, the keys of ``IDENTITY``."""
    for network in PUBLISHED:
        path = getattr(args, network)
        weights = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        for seed, preset in itertools.product(args.seeds if weights else (), args.presets):
            config = Config.create(preset, *map(assignment, args.set), {"bits": args.bits, "seed": seed})
            row = {
                "network": network, "weights": weights, "side": args.side, "preset": preset, "bits": args.bits,
                "seed": seed, "settings": runs.settings_of(config),
            }  # fmt: skip
            if not runs.has(NAME, row):
                yield row


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for network in PUBLISHED:
        parser.add_argument(f"--{network}", type=Path, metavar="FILE", help=f"weights of {network}")
    parser.add_argument("--images", type=Path, required=True, help="folder with one folder per class")
    parser.add_argument("--presets", nargs="+", choices=AS_GENERATED, default=AS_GENERATED)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1, help="that share a run, each with a GPU of its own")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=100, help="images per batch of the measurement")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode images")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="folder of the run folders")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    args = parser.parse_args(words)
    if all(getattr(args, network) is None for network in PUBLISHED):
        parser.error("no weights are given; give " + " or ".join(f"--{network} FILE" for network in PUBLISHED))
    for path in filter(None, (getattr(args, network) for network in PUBLISHED)):
        if not path.is_file():
            parser.error(f"there are no weights at {path}")
    images = Photographs(args.images, Preprocessing((3, args.side, args.side), MEAN, STD))
    for wanted in missing(args):
        name = f"{wanted['network']} {wanted['preset']} seed {wanted['seed']}"
        try:
            row = measure(wanted, images, args)
        except RuntimeError as error:
            print(f"failed {name}: {error}", flush=True)
            return 1
        runs.keep(NAME, row, IDENTITY)
        print(f"{name}: {row['teacher_top1']} % -> {row['top1']} %", flush=True)
    page(runs.load(NAME))
    return 0


if __name__ == "__main__":
    sys.exit(main())
