"""Measures how long exported files of common architectures take, at the size at which people deploy them.

    python benchmarks/latency.py [NAME ...] [--bits w8a8 w4a8] [--seconds 10]
    python benchmarks/latency.py --page

NAME is a name of ``NETWORKS`` or a shell pattern. Each network has random weights and is quantized without training,
because weights do not change how long a layer takes. Each network and bit-width becomes a row of
docs/benchmarks/latency.json, from which the page is made. It needs the extra ``onnx``, and timm 1.0.31.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import runs
import torch
from architecture_forms import SETTINGS
from architectures import preprocessing_of
from conformance import machine
from networks import Architecture
from networks.settling import settled
from networks.timm_networks import VERSION, timm

from acq import zoo
from acq.config import Config
from acq.core.pixels import normalise
from acq.errors import Note
from acq.export.benchmark import benchmark
from acq.recipe import Request, quantize
from acq.runs.names import MODEL
from acq.runs.session import Session
from acq.synthesis.scenes import scenes

SIZE = (3, 224, 224)
NETWORKS = tuple(
    Architecture(title, timm(name, num_classes=10), SIZE)
    for title, name in {
        "ResNet-18": "resnet18",
        "MobileNetV2": "mobilenetv2_100",
        "EfficientNet-Lite0": "tf_efficientnet_lite0",
        "DeiT-T": "deit_tiny_patch16_224",
        "ConvNeXt-Atto": "convnext_atto",
    }.items()
)
SETTLING = 8  # images that batch norms get their statistics from
IDENTITY = ("network", "bits")
COLUMNS = {
    "network": "network",
    "bits": "bits",
    "megabytes": "MB",
    "size": "size of float",
    "kernels": "integer layers",
}
PAIRS = [f"{threads}x{batch}" for threads in (1, 2) for batch in (1, 32)]
HEAD = f"""\
`benchmarks/latency.py` writes this page; do not edit it.
Networks of timm {VERSION} with random weights, 224 x 224 pixels and 10 classes, on ONNX Runtime.
The float file and the integer file take turns in one process.""".splitlines()
NOTE = """\
- **Size of float** and **latency of float** are ratios to the same network in floating point.
- **Latency** is the median of a batch: threads x images per batch.
- **Integer layers** counts the layers that ONNX Runtime runs on integer kernels.""".splitlines()


def measure(architecture: Architecture, bits: str, seconds: float) -> runs.Row:
    """Quantize and export a network, and measure the file.

    Args:
        architecture: The network.
        bits: Its bit-widths, such as ``w8a8``.
        seconds: Time per latency.
    """
    known = preprocessing_of(architecture)
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = settled(architecture.build(), normalise(scenes(SETTLING, architecture.size, rng), known))
    given = zoo.Network(network, known, architecture.name, True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # that images start from scenes
        config = Config.create("default", SETTINGS, {"bits": bits})
        result = quantize(Request.of(given, config, {"model": given.name}), Session(Path(folder)))
        found = benchmark(result.student, Path(folder) / MODEL, seconds=seconds)
    assert result.exported is not None
    parity = result.exported.parity
    return {
        "network": architecture.name,
        "bits": bits,
        "megabytes": round(found.integer_bytes / 1e6, 2),
        "size": round(found.size_ratio, 3),
        "kernels": f"{parity.integer} of {parity.layers}",
        "latencies": {f"{one.threads}x{one.batch}": asdict(one) for one in found.latencies},
        **runs.origin(),
        "remarks": [f"{machine()}."],
    }


def write(rows: Sequence[runs.Row]) -> str:
    """Write and return the page."""
    titles = [*COLUMNS.values(), *(f"latency of float: {pair}" for pair in PAIRS), "ms: 1x1", "commit"]
    lines = []
    for row in rows:
        ratios = [f"{row['latencies'][pair]['latency_ratio']:.2f}" for pair in PAIRS]
        first = row["latencies"][PAIRS[0]]
        times = f"{first['float_ms']:.1f} → {first['integer_ms']:.1f}"
        lines.append([*(row[key] for key in COLUMNS), *ratios, times, row["commit"]])
    remarks = dict.fromkeys(f"- {remark}" for row in rows for remark in row["remarks"])
    commands = runs.fence(row["command"] for row in rows)
    return runs.write_page(
        "latency", "Latency of common architectures", HEAD, runs.table(titles, lines), [*NOTE, *remarks], commands
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=["*"])
    parser.add_argument("--bits", nargs="+", default=["w8a8"])
    parser.add_argument("--seconds", type=float, default=10.0, help="time per latency")
    parser.add_argument("--page", action="store_true", help="write the page from all rows")
    args = parser.parse_args(words)
    chosen = [each for each in NETWORKS if any(fnmatch(each.name, pattern) for pattern in args.names)]
    for architecture, bits in [] if args.page else itertools.product(chosen, args.bits):
        row = {**measure(architecture, bits, args.seconds), "command": runs.command(__file__, words)}
        runs.keep("latency", row, IDENTITY)
        ratios = {pair: round(row["latencies"][pair]["latency_ratio"], 3) for pair in PAIRS}
        print(row["network"], bits, ratios, flush=True)
    write(runs.load("latency"))


if __name__ == "__main__":
    main()
