"""Measures exported files of finished runs: size, kernels, equality with the student, accuracy and latency.

    python benchmarks/export.py RUN [RUN ...] --data test.npz

Each run is exported again. The labelled images only measure: the file and the student must give the same logits on
them. Latencies are ratios to the float network, whose file takes turns with the integer file in one process. Each run
becomes a row of docs/benchmarks/export.json, from which the page is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from runs import Row, command, each, fence, keep, origin, table, write_page

from acq import api
from acq.core.pixels import from_bytes
from acq.export.check import check
from acq.files.images import read
from acq.runs import student_file

KEYS = ("model", "bits", "placement", "first_last_bits", "seed")
COLUMNS = {
    "model": "model",
    "bits": "bits",
    "first_last_bits": "first and last layers",
    "seed": "seed",
    "bytes": "bytes",
    "size": "size of float",
    "kernels": "integer layers: ONNX Runtime, OpenVINO",
    "top1": "top-1 %: student, file",
    "agreement": "same class %",
    "equal": "equal logits %",
    "latency": "latency of float: threads x batch",
    "memory": "peak MB: float, integer",
    "commit": "commit",
}
NOTE = """\
- **Size of float** and **latency of float** are ratios to the same network in floating point.
- **Integer layers** counts the layers that an engine runs on integer kernels.
- **Same class** and **equal logits** compare ONNX Runtime with PyTorch on the test images.
- **Equal** means within 0.0001 of the largest logit.""".splitlines()


def measure(run: Path, data: Path, seconds: float) -> Row:
    """Export a run and measure the file.

    Args:
        run: The folder of a finished run.
        data: Labelled images.
        seconds: Time per latency.
    """
    made, student, facts = api.export_run(run), api.load(run), student_file.load_facts(run)
    latency, known = api.benchmark(run, seconds=seconds), student.preprocessing
    if known is None:
        raise SystemExit(f"error: the normalisation of the images of {run} is not known; quantize again")
    images = read(data, preprocessing=known, output=student.output).images[:]
    parity = check(made.path, student, from_bytes(images, known))
    kernels = [(parity.integer, parity.layers)]
    kernels += [(parity.openvino.integer, parity.openvino.layers)] if parity.openvino else []
    origins = {"model": facts["origin"]["model"], **facts["config"]}
    return {
        **{key: origins[key] for key in KEYS},
        "bytes": made.bytes,
        "size": round(latency.size_ratio, 4),
        "kernels": ", ".join(f"{integer} of {layers}" for integer, layers in kernels),
        "top1": ", ".join(f"{api.evaluate(target, data):.2f}" for target in (run, made.path)),
        "agreement": round(parity.optimised.agreement, 2),
        "equal": round(parity.optimised.equal, 2),
        "openvino_agreement": round(parity.openvino.match.agreement, 2) if parity.openvino else None,
        "test_images": parity.images,
        "latency": ", ".join(f"{one.threads}x{one.batch}: {one.latency_ratio:.3f}" for one in latency.latencies),
        "memory": f"{latency.float_memory_mb}, {latency.integer_memory_mb}",
        "threads": torch.get_num_threads(),
        **origin(),
    }


def write(rows: Sequence[Row]) -> str:
    """Write and return the page."""
    lines = table(list(COLUMNS.values()), ([row[key] for key in COLUMNS] for row in rows))
    remarks = dict.fromkeys(f"- {remark}" for row in rows for remark in row.get("remarks", []))
    head = [f"Measured on {each(rows, 'threads')} threads."]
    return write_page("export", "Exported files", head, lines, [*NOTE, *remarks], fence(row["command"] for row in rows))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, help="labelled images: .npz or a folder of classes")
    parser.add_argument("--seconds", type=float, default=10.0, help="time per latency")
    args = parser.parse_args(words)
    for run in args.runs:
        row = {**measure(run, args.data, args.seconds), "command": command(__file__, words)}
        print(write(keep("export", row, KEYS)), flush=True)


if __name__ == "__main__":
    main()
