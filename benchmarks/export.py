"""What `acq export` makes of finished runs: size, kernels, accuracy and latency of the file; run by hand.

    python benchmarks/export.py RUN [RUN ...] --data test.npz

Each run is exported anew. Accuracy is that of the file and of the student on the same labelled images; `same` is the
share of images of one class, `equal` of those whose logits are all equal but for float rounding (1e-4 of the largest).
Latencies are ratios to the same network in floating point, batch norms folded, both taken in turn in one process.
Writes JSON and a Markdown table that grow run by run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from runs import COMMIT, keep, page

from acq import api
from acq.files.images import batches, read
from acq.quantization.student import Student
from acq.runs import student_file as artifact

KEYS = ("model", "bits", "ends", "seed")
COLUMNS = {
    "model": "model",
    "bits": "bits",
    "ends": "ends",
    "seed": "seed",
    "bytes": "bytes",
    "size_ratio": "of float",
    "kernels": "integer layers: ONNX Runtime, OpenVINO",
    "student_top1": "student %",
    "file_top1": "file %",
    "same": "same %",
    "equal": "equal %",
    "latencies": "latency ratio (threads x batch)",
    "memory": "peak MB: float, integer",
}


def compared(student: Student, file: Path, data: Path) -> dict[str, Any]:
    """Student and file on the same labelled images."""
    engine, known = api.engine(file), student.preprocessing
    assert known is not None
    counts = torch.zeros(4)
    images = read(data, input_size=known.input_size, classes=student.classes)
    with torch.no_grad():
        for x, labels in batches(images, known):
            ours, theirs = student(x), engine(x)
            apart = (ours - theirs).abs().amax(1)
            found = (
                ours.argmax(1) == labels,
                theirs.argmax(1) == labels,
                ours.argmax(1) == theirs.argmax(1),
                apart <= 1e-4 * ours.abs().max(),
            )
            counts += torch.stack([hits.sum() for hits in found])
    student_top1, file_top1, same, equal = (round(share, 2) for share in (100 * counts / len(images)).tolist())
    return {"student_top1": student_top1, "file_top1": file_top1, "same": same, "equal": equal, "images": len(images)}


def measure(run: Path, data: Path, seconds: float) -> dict[str, Any]:
    """One run's row."""
    made = api.export_run(run)
    origin = artifact.load_facts(run)
    config = origin["config"]
    found = api.benchmark_run(run, seconds=seconds)
    elsewhere = made.parity.openvino
    return {
        "commit": COMMIT,
        "threads": torch.get_num_threads(),
        "model": origin["origin"]["model"],
        **{key: config[key] for key in ("bits", "ends", "seed")},
        "bytes": made.bytes,
        "size_ratio": round(found.size_ratio, 4),
        "kernels": f"{made.parity.integer} of {made.parity.layers}"
        + (f", {elsewhere.integer} of {elsewhere.layers}" if elsewhere else ""),
        "openvino_agreement": elsewhere.match.agreement if elsewhere else None,
        **compared(artifact.load(run).eval(), made.path, data),
        "latencies": {f"{row.threads}x{row.batch}": round(row.ratio, 3) for row in found.latencies},
        "memory": f"{found.float_memory_mb}, {found.integer_memory_mb}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, help=".npz or folder of classes")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each latency is measured")
    args = parser.parse_args()
    for run in args.runs:
        rows = keep("export", measure(run, args.data, args.seconds), KEYS)["runs"]
        cells = [[" ".join(map(str, _shown(row[key]))) for key in COLUMNS] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in ([*COLUMNS.values()], ["---"] * len(COLUMNS), *cells)]
        note = f"Commit {', '.join(dict.fromkeys(row['commit'] for row in rows))}."
        print(page("export", lines, note, (row["command"] for row in rows)), flush=True)


def _shown(value: Any) -> list[Any]:
    return [f"{name}: {part}" for name, part in value.items()] if isinstance(value, dict) else [value]


if __name__ == "__main__":
    main()
