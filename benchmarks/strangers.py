"""Runs networks and checkpoint files of other people as their owners would, and prints what became of each.

    ACQ_CASES=FOLDER python benchmarks/strangers.py [CASE ...] [--out runs/strangers] [--bits w8a8] [--checkpoints]

FOLDER holds ``nets.py`` (a callable per network, the size of its images, their normalisation), ``compare.py`` (how far
student and file are from the network, and the limit) and ``checkpoints.py`` (writes files for the network ``plain``).
Each network is quantized in a process of its own with few steps. Finished cases are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FEW_STEPS = ("generator.steps=3", "images.steps=30", "images.count=64", "student.steps=3")
PICKED = {"two_heads_dict": "age", "output_object": "logits"}  # which output counts where there are several
SECONDS = 600  # at most per command


def network_outcome(
    case: str, size: Sequence[int], normalisation: tuple[float, float], bits: str, run: Path
) -> dict[str, Any]:
    """Quantize a network and compare student and file with it.

    Args:
        case: Its name in ``nets.py``.
        size: Channels, height and width.
        normalisation: Mean and standard deviation of every channel.
        bits: Bits of weights and activations.
        run: The run folder.

    Returns:
        What became of it (``outcome``), seconds, and the last line on standard error or the figures.
    """
    mean, std = (",".join([f"{value:.6g}"] * size[0]) for value in normalisation)
    network = [f"nets:{case}", "--input-size", ",".join(map(str, size)), "--mean", mean, "--std", std, "--bits", bits]
    settings = [word for setting in FEW_STEPS for word in ("--set", setting)]
    words = ["quantize", *network, *settings, "--overwrite", "--out", str(run), "--json"]
    clock = time.perf_counter()
    done = acq(*words)
    if done.returncode == 2 and "--outputs" in done.stderr:
        done = acq(*words, "--outputs", PICKED.get(case, "0"))
    found: dict[str, Any] = {"case": case, "bits": bits, "seconds": round(time.perf_counter() - clock)}
    if done.returncode:
        return found | {"outcome": _failure(done, run), "says": _last_line(done.stderr)}
    compared = python("compare.py", case, str(run))
    if compared.returncode:
        return found | {"outcome": "wrong", "says": _last_line(compared.stderr)}
    return found | _judged(json.loads(compared.stdout))


def _judged(figures: dict[str, Any]) -> dict[str, Any]:
    """Whether student and file are as near to the network as the limit asks."""
    parts = {name: figures[name] for name in ("student", "file_to_network") if name in figures}
    worst = max(part["error"] for part in parts.values())
    says = ", ".join(f"{name} {part['agreement']} % {part['error']}" for name, part in parts.items())
    if "file_to_network" not in figures:
        return {"outcome": "no file", "says": says}
    near = worst <= figures["limit"] and not figures["depends_on_its_batch"]
    return {"outcome": "file" if near else "wrong", "says": f"{says} (limit {figures['limit']})"}


def _failure(done: subprocess.CompletedProcess[str], run: Path) -> str:
    if "Traceback" in done.stderr or done.returncode not in (1, 2):
        return "traceback"
    return "late" if done.returncode == 1 or run.exists() else "refused"


def checkpoint_outcomes() -> Iterator[dict[str, Any]]:
    """Read every checkpoint file into the network ``plain`` and compare its weights with those that are expected."""
    import torch

    from acq import zoo
    from acq.errors import RequestError

    files = importlib.import_module("checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            expected = files.other(files.EXPECTED.get(file.stem, 5)).state_dict()
            row = {"case": file.name, "outcome": "refused"}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = zoo.resolve("nets:plain", checkpoint=file, input_size=(3, 32, 32)).model.state_dict()
            except RequestError as error:
                yield row | {"says": str(error)}
                continue
            except Exception as error:  # the row says so
                yield row | {"outcome": "traceback", "says": repr(error)}
                continue
            close = {"rtol": 1e-2, "atol": 1e-3}  # of a file in half precision
            same = all(torch.allclose(found[name], value, **close) for name, value in expected.items())
            yield row | {"outcome": "loads" if same else "wrong", "says": ""}


def acq(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command ``acq``."""
    return python("-m", "acq", *words)


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder of the cases, with one thread."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        return subprocess.run(
            [sys.executable, *words], cwd=os.environ["ACQ_CASES"], env=environment, text=True, capture_output=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"Traceback: no end after {SECONDS} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def main() -> None:
    """Run the cases that are not done yet and print the table."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("cases", nargs="*", help="names of networks; all without")
    known.add_argument("--out", type=Path, default=Path("runs/strangers"))
    known.add_argument("--bits", default="w8a8")
    known.add_argument("--checkpoints", action="store_true", help="read the checkpoint files instead")
    given = known.parse_args()
    folder = Path(os.environ["ACQ_CASES"]).resolve()
    os.environ["ACQ_CASES"] = str(folder)
    sys.path.insert(0, str(folder))
    if given.checkpoints:
        rows = list(checkpoint_outcomes())
    else:
        rows = list(network_rows(given.cases, given.bits, given.out.resolve()))
    for row in rows:
        print(f"{row['case']:<28}{row['outcome']:<11}{row['says']}")
    print(", ".join(f"{count} {outcome}" for outcome, count in Counter(row["outcome"] for row in rows).most_common()))


def network_rows(names: Sequence[str], bits: str, out: Path) -> Iterator[dict[str, Any]]:
    """The outcome of each network; those that are kept in ``out`` are not repeated."""
    nets = importlib.import_module("nets")
    out.mkdir(parents=True, exist_ok=True)
    for case in names or nets.CASES:
        kept = out / f"{case}-{bits}.json"
        if not kept.exists() or names:
            normalisation = nets.NORMALISATION.get(case, (0.5, 0.25))
            row = network_outcome(case, nets.SIZES[case], normalisation, bits, out / f"{case}-{bits}")
            kept.write_text(json.dumps(row, indent=1) + "\n")
        yield json.loads(kept.read_text())


if __name__ == "__main__":
    main()
