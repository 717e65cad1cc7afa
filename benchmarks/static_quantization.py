"""Measures the static quantization of ONNX Runtime and NNCF beside ``acq``, at W8A8 on one machine.

    pip install nncf==3.4.0
    python benchmarks/static_quantization.py --data-folder data --only signs

Each network is quantized by ``acq`` with its defaults, and by both tools on noise, on the finished images of that run,
and on real images. The real ones are the first of the test images, which favours the tools. Every file runs on ONNX
Runtime with the same test images. Each result becomes a row of docs/benchmarks/static_quantization.json, from which the
page is made. A network that has its rows is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import case_networks
import numpy as np
import onnx
import onnxruntime
import torch
from case_networks import Network
from cases import Case
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from runs import Row, fence, keep, load, origin, table, write_page
from torch import Tensor

from acq import api, zoo
from acq.core.evaluate import accuracy
from acq.core.outputs import Output
from acq.core.pixels import from_bytes
from acq.core.values import Preprocessing
from acq.files.images import LabelledImages, batches, read
from acq.recipe import Request, prepare

NETWORKS = (
    case_networks.BUNDLED, case_networks.PUBLIC, case_networks.SIGNS, case_networks.MCUNET, case_networks.MOBILENET,
    case_networks.LITE0, case_networks.ETINYNET,
)  # fmt: skip
PIXELS = 4 << 20  # of the calibration images: 256 up to 128 x 128 pixels
NAME = "static_quantization"
IDENTITY = ("network", "tool", "images")
HOW = [
    "Weights and activations have 8 bits, first and last layers too. The tools have the recipe of their guides:",
    "",
    "- **ONNX Runtime:** preprocessing, then QDQ with scales per channel of weights, ranges from minimum to maximum.",
    "- **NNCF:** preset `mixed`, with accurate (slow) bias correction. On EtinyNet that fails with a `KeyError`, so",
    "  EtinyNet has the fast one.",
    "- **acq:** the defaults; no images are given to it. Its seconds include making images.",
    "",
    "Calibration has 256 images, or 83 at 224 x 224 pixels. `noise` is standard normal, and `real` are the first test",
    "images. `finished` are those of the run of `acq`, repeated where it stopped after a few.",
    "All rows are of one machine, whose processor has VNNI instructions. It ran other programs, so seconds are upper",
    "bounds. Without these instructions, products of 8 bits saturate. There EfficientNet-Lite0 had 83.2 % with ONNX",
    "Runtime and 85.6 % with NNCF on real images, and 87.8 % with `acq` (an earlier commit).",
]


@dataclass(frozen=True)
class Subject:
    """A network as a floating-point file, with its test images and its calibration images by kind."""

    file: Path
    known: Preprocessing
    output: Output
    test: LabelledImages
    images: dict[str, Tensor]

    def accuracy(self, file: Path) -> float:
        """Top-1 in percent of a file on ONNX Runtime."""
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def answers(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

        return round(accuracy(answers, batches(self.test, self.known), self.output).percent, 2)


class Reader(CalibrationDataReader):
    """One calibration image after the other, as ONNX Runtime wants them."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.left = iter([{name: image.numpy()} for image in images.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image; None at the end."""
        return next(self.left, None)


def by_onnxruntime(file: Path, images: Tensor, out: Path) -> None:
    """Quantize a file as the guide of ONNX Runtime says."""
    ready = out.with_name("ready.onnx")
    quant_pre_process(str(file), str(ready))
    name = onnx.load(ready).graph.input[0].name
    quantize_static(str(ready), str(out), Reader(name, images), quant_format=QuantFormat.QDQ, per_channel=True)


def by_nncf(file: Path, images: Tensor, out: Path) -> None:
    """Quantize a file as the guide of NNCF says, with its more accurate bias correction where that works."""
    import nncf

    model = onnx.load(file)
    name = model.graph.input[0].name
    dataset = nncf.Dataset(list(images.split(1)), lambda image: {name: image.numpy()})
    how = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(images)}
    try:
        found = nncf.quantize(model, dataset, fast_bias_correction=False, **how)
    except KeyError:  # NNCF 3.4.0 does not find a node of EtinyNet
        found = nncf.quantize(onnx.load(file), dataset, fast_bias_correction=True, **how)
    onnx.save(found, out)


TOOLS: dict[str, tuple[str, Callable[[Path, Tensor, Path], None]]] = {
    "ONNX Runtime": ("onnxruntime", by_onnxruntime),
    "NNCF": ("nncf", by_nncf),
}


def measure(network: Network, data: Path, folder: Path) -> Iterator[Row]:
    """The rows of ``acq`` and of each tool on each kind of images."""
    config, found = Case(network, "w8a8").config(0), network.resolved(data)
    known, clock = found.preprocessing, time.perf_counter()
    training = prepare(Request.of(found, config, {})).training
    for _ in training.run():
        pass
    context, ours = training.context, folder / "acq.onnx"
    api.export_onnx(context.student.eval(), ours)
    seconds = time.perf_counter() - clock
    test = read(data / network.data, preprocessing=known, output=context.teacher.output)
    subject = Subject(
        folder / "float.onnx", known, context.teacher.output, test, _images(context.dataset.images, test, known)
    )
    _write(found, subject.file)
    before = subject.accuracy(subject.file)
    common = {"network": network.name, "teacher_top1": before, "test_images": len(test), "bits": "w8a8", **origin()}
    figures = {"top1": subject.accuracy(ours), "seconds": round(seconds, 1), "bytes": ours.stat().st_size}
    yield {**common, "tool": "acq", "version": version("acquant"), "images": "none", **figures}
    for tool, (package, quantized) in TOOLS.items():
        for kind, images in subject.images.items():
            out, clock = folder / "other.onnx", time.perf_counter()
            quantized(subject.file, images, out)
            seconds = time.perf_counter() - clock
            figures = {"top1": subject.accuracy(out), "seconds": round(seconds, 1), "bytes": out.stat().st_size}
            yield {**common, "tool": tool, "version": version(package), "images": kind, **figures}


def _images(finished: Tensor, test: LabelledImages, known: Preprocessing) -> dict[str, Tensor]:
    """Calibration images by kind, normalised."""
    _, height, width = known.input_size
    count = min(256, PIXELS // (height * width), len(test))
    noise = torch.randn(count, *known.input_size, generator=torch.Generator().manual_seed(0))
    repeated = finished[torch.arange(count) % len(finished)]
    return {
        "noise": noise,
        "finished": repeated.contiguous(),
        "real": from_bytes(np.asarray(test.images[:count]), known),
    }


def _write(network: zoo.Network, path: Path) -> None:
    """Write a network in floating point, for any number of images."""
    images = torch.zeros(2, *network.preprocessing.input_size)
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        network.model.eval(),
        (images,),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=dynamic,
    )


def page(rows: Sequence[Row]) -> str:
    """Write and return the page."""
    lines = []
    for network in NETWORKS:
        for row in (row for row in rows if row["network"] == network.name):
            tool = f"{row['tool']} {row['version']}"
            drop = f"{row['teacher_top1'] - row['top1']:.2f}"
            cells = [network.title, tool, row["images"], f"{row['teacher_top1']:.2f} → {row['top1']:.2f}", drop]
            lines.append([*cells, f"{row['seconds']:.0f}", f"{row['bytes'] / 1000:,.0f}", row["commit"]])
    titles = ["network", "tool", "images", "top-1 %", "drop", "seconds", "kB", "commit"]
    commands = ["pip install nncf==3.4.0", "python benchmarks/static_quantization.py --data-folder data"]
    return write_page(NAME, "Static quantization of other tools", HOW, table(titles, lines), fence(commands))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("data"), help="folder of the test data")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names of networks, such as resnet20-*")
    parser.add_argument("--again", action="store_true", help="repeat networks that have all rows")
    args = parser.parse_args(words)
    wanted = 1 + 3 * len(TOOLS)
    for network in (network for network in NETWORKS if fnmatch(network.name, args.only)):
        have = sum(row["network"] == network.name for row in load(NAME))
        obstacle = Case(network, "w8a8").obstacle(args.data_folder)
        if obstacle is not None or (have == wanted and not args.again):
            print(f"skipped {network.name}: {obstacle or 'it has its rows; give --again to repeat them'}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(network, args.data_folder, Path(folder)):
                keep(NAME, row, IDENTITY)
                print(f"{network.name} {row['tool']} {row['images']}: {row['top1']} %, {row['seconds']} s", flush=True)
    page(load(NAME))


if __name__ == "__main__":
    main()
