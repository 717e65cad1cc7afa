"""Writes ONNX files whose batch norms are folded into the convolutions.

    python benchmarks/folded.py data

The cases of that kind in ``cases.py`` take them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import case_networks
import torch

from acq import zoo

NETWORKS = (case_networks.BUNDLED, case_networks.LITE0)


def write(network: zoo.Network, path: Path) -> None:
    """Write a network as torch's exporter does by default: batch norms folded, one image."""
    image = torch.zeros(1, *network.preprocessing.input_size)
    torch.onnx.export(network.model, (image,), str(path), dynamo=True, external_data=False, verbose=False)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of test data, as --data-folder of conformance.py")
    args = parser.parse_args(words)
    for network in NETWORKS:
        write(zoo.resolve(network.model), args.folder / case_networks.folded_file(network))


if __name__ == "__main__":
    main()
