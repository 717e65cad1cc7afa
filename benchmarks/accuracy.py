"""Accuracy of `acq quantize` over bits and seeds, as JSON and as a Markdown table; run by hand.

    python benchmarks/accuracy.py resnet20-cifar10 --data sample --bits w8a8 w4a4 --seeds 0 1 2 --ends same

Each run is a process of its own, so that seconds and peak memory are those a user would see. The last step is what is
measured; the labelled images steer nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks"


def quantize(arguments: list[str]) -> dict[str, Any]:
    """One run in a folder that is thrown away: its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "acq", "quantize", *arguments, "--out", f"{folder}/run", "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def row(runs: list[dict[str, Any]]) -> str:
    """One line of the table: mean and standard deviation over seeds, the drop against the teacher, the cost."""
    drop = runs[0]["teacher_top1"] - statistics.mean(run["top1"] for run in runs)
    seconds = statistics.mean(run["seconds"] for run in runs)
    memory = max(run["peak_memory_mb"] for run in runs)
    settings = " | ".join(str(runs[0][name]) for name in ("bits", "placement", "ends", "addends", "preset"))
    return f"| {settings} | {len(runs)} | {top1_of(runs)} | {drop:.2f} | {seconds:.0f} | {memory} |"


def top1_of(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation of top-1 over seeds, in percent."""
    top1 = [run["top1"] for run in runs]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{spread}"


def save(name: str, command: str, runs: list[dict[str, Any]], lines: list[str], where: str) -> str:
    """Write what was measured as JSON and the table as Markdown, with the command that made them; the Markdown."""
    text = "\n".join([*lines, "", f"{where}. Made by `{command}`.", ""])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", default="accuracy", help="name of the result files")
    args, passed_on = parser.parse_known_args()
    lines = [
        "| bits | placement | ends | addends | preset | seeds | top-1 % | drop | seconds | peak MB |",
        "|---" * 10 + "|",
    ]
    everything = []
    for bits in args.bits:
        runs = []
        for seed in args.seeds:
            run = quantize([args.model, "--bits", bits, "--seed", seed, "--data", args.data, *passed_on])
            runs.append(run)
            print(bits, seed, run["top1"], f"{run['seconds']} s", flush=True)
        everything += runs
        lines.append(row(runs))
    first = everything[0]
    where = (
        f"teacher {first['teacher_top1']} % on {first['images']} images; {first['device']}, {first['threads']} threads"
    )
    command = "python benchmarks/accuracy.py " + " ".join(Path(a).name if "/" in a else a for a in sys.argv[1:])
    print(save(args.name, command, everything, lines, f"{where}, torch {first['torch']}"))


if __name__ == "__main__":
    main()
