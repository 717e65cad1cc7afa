"""Measures the claims of ACQ's abstract: ACQ, GDFQ and ACQ without each of its parts, in the setting of the papers.

    python benchmarks/claims.py --data-folder data
    python benchmarks/claims.py --data-folder data --only signs
    python benchmarks/claims.py --page

Each run becomes a row of docs/benchmarks/claims.json at once, and a run that has its row is skipped. Several processes
may share the work, each with networks of its own. The seeds are used for nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import runs
import torch
from attention import attention_figures
from case_networks import MCUNET, PUBLIC, SIGNS, Network
from cases import Case
from claims_page import ACQ, GDFQ, NAME, REAL, write
from runs import Row

from acq.config import Config
from acq.core.memory import keep_freed_memory
from acq.core.pixels import from_bytes
from acq.files.documents import assignment
from acq.files.images import read
from acq.network.teacher import Teacher
from acq.network.trace import trace
from acq.synthesis.dataset import generate
from acq.training.context import Context

PARTS = {  # the preset acq without one of its parts
    "no centre": ("generator.centre_std=0", "generator.losses.centre=0"),
    "no pairs": ("generator.losses.paired=0",),
    "no consistency": ("generator.losses.consistency=0",),
}
VARIANTS = {ACQ: ("preset=acq",), GDFQ: ("preset=gdfq",), **{name: ("preset=acq", *off) for name, off in PARTS.items()}}
IMAGES = 1024  # whose attention is measured
IDENTITY = ("network", "variant", "bits", "seed", "engine", "settings")


@dataclass(frozen=True)
class Study:
    """A network with the bit-widths and seeds at which the variants are compared."""

    network: Network
    bits: tuple[str, ...]
    seeds: tuple[int, ...]


STUDIES = (
    Study(PUBLIC, ("w3a3", "w4a4"), (10, 11, 12, 13, 14)),
    Study(SIGNS, ("w3a3",), (10, 11, 12)),
    Study(MCUNET, ("w4a8",), (10, 11, 12)),
)


def measure(study: Study, variant: str, seed: int, data: Path, extra: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one variant and seed that are missing; bit-widths share their images.

    Args:
        study: The network and its bit-widths.
        variant: A key of ``VARIANTS``.
        seed: Of the runs.
        data: The folder of test data.
        extra: More settings, as ``key=value``.
    """
    network = study.network
    common = {"network": network.name, "variant": variant, "engine": network.engine}
    configs = [config_of(bits, variant, seed, extra) for bits in study.bits]
    missing = [config for config in configs if not _measured(common, config)]
    found = runs.quantized(network.resolved(data), missing, data / network.data, _generated)
    for row in found:
        yield {**common, **row}


def config_of(bits: str, variant: str, seed: int, extra: Sequence[str] = ()) -> Config:
    """The settings of a run. The setting of the papers is that of the presets, whatever a network has by default."""
    changes = map(assignment, (*VARIANTS[variant], *extra))
    return Config.create("default", *changes, {"bits": bits, "seed": seed})


def real_row(network: Network, data: Path) -> Row:
    """The figures of attention on real images, the reference of those on generated ones."""
    found = network.resolved(data)
    known = found.preprocessing
    teacher = Teacher(trace(found.model, known.input_size))
    labelled = read(data / network.data, preprocessing=known, output=teacher.output, limit=IMAGES)
    images, label = from_bytes(labelled.images[:], known), torch.from_numpy(labelled.labels)
    figures = attention_figures(teacher, images, label, known)
    common = {"network": network.name, "variant": REAL, "engine": network.engine, "bits": None, "seed": 0}
    return {**common, "settings": {}, "observed": figures, **runs.origin()}


def _generated(context: Context) -> Row:
    """The figures of attention on new images of the generator, under conditions of their own."""
    rng = torch.Generator(context.rng.device).manual_seed(context.rng.initial_seed() + 1)
    images, condition = generate(context.generator, context.conditions, IMAGES, rng)
    return {"observed": attention_figures(context.teacher, images, condition.label, context.preprocessing)}


def _measured(common: Row, config: Config) -> bool:
    settings = runs.settings_of(config)
    return runs.has(NAME, {**common, "bits": config.bits, "seed": config.seed, "settings": settings})


def main(words: Sequence[str] | None = None, studies: Sequence[Study] = STUDIES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("data"), help="folder of the test data")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="networks whose names contain it")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings, for a short trial")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    args = parser.parse_args(words)
    keep_freed_memory()
    for study in [] if args.page else studies:
        network = study.network
        if not fnmatch(network.name, f"*{args.only}*"):
            continue
        if (obstacle := Case(network, study.bits[0]).obstacle(args.data_folder)) is not None:
            print(f"skipped {network.name}: {obstacle}", flush=True)
            continue
        if not runs.has(NAME, {"network": network.name, "variant": REAL, "engine": network.engine}):
            runs.keep(NAME, real_row(network, args.data_folder), IDENTITY)
        for seed in study.seeds:  # all variants of a seed, then the next: early rows compare already
            for variant in VARIANTS:
                for row in measure(study, variant, seed, args.data_folder, args.set):
                    runs.keep(NAME, row, IDENTITY)
                    print(f"{network.name} {variant} {row['bits']} seed {seed}: {row['top1']} %", flush=True)
    if runs.load(NAME):
        write([study.network for study in studies])
    return 0


if __name__ == "__main__":
    sys.exit(main())
