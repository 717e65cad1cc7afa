"""The folder of one run: who may use it, and what is written where."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout
from PIL import Image

from acq.core.values import Record
from acq.errors import RequestError, RunError, first_line
from acq.files.limits import from_json, from_yaml, read_text
from acq.runs import checkpoint
from acq.runs.student_file import DOCUMENT, WEIGHTS

CONFIG, METRICS, SUMMARY, SAMPLES = "config.yaml", "metrics.jsonl", "summary.json", "samples"
INSIGHT, REPORT, BOARD = "insight.json", "report.html", "tensorboard"
LATENCY = "latency.json"
STATE = "checkpoint/state.pt"
FORMAT = 1  # of the run folder, and of its checkpoint
_LOCK, _OWNER = ".lock", ".owner"
_FIGURES = {"bits", "placement", "preset", "seed", "seconds", "quantized_bytes"}  # what no summary lacks
_CONTENTS = (
    CONFIG,
    METRICS,
    SUMMARY,
    SAMPLES,
    INSIGHT,
    REPORT,
    BOARD,
    LATENCY,
    "checkpoint",
    WEIGHTS,
    DOCUMENT,
    "model.onnx",
)


class RunFolder:
    """A claimed folder; made by ``claim`` alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, record: Record) -> None:
        """Append a record's figures to ``metrics.jsonl``."""
        line = {**vars(record), "seconds": round(record.seconds, 3)}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write a trainer's state as the checkpoint from which ``--resume`` goes on."""
        checkpoint.save(self.path / STATE, {"format": FORMAT, "trainer": dict(state)})

    def load_state(self) -> dict[str, Any] | None:
        """The trainer's state of the last checkpoint, or None where the run had not come to one; the log is cut to it.

        Raises:
            RequestError: the checkpoint or the log is damaged.
        """
        log, path = self.path / METRICS, self.path / STATE
        if not checkpoint.exists(path):
            log.unlink(missing_ok=True)
            return None
        state = checkpoint.load(path)
        if state.get("format") != FORMAT or not isinstance(state.get("trainer"), dict):
            raise RequestError(f"the checkpoint {path} is not one of this version; start again with --overwrite")
        try:
            lines = read_text(log).splitlines(keepends=True) if log.exists() else []
            whole = [line for line in lines if line.endswith("\n")]  # a killed process may leave half of one
            kept = [line for line in whole if from_json(line)["seconds"] <= state["trainer"]["seconds"] + 1e-3]
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{log} is damaged ({first_line(error)}); start again with --overwrite") from error
        write_text(log, "".join(kept))
        return dict(state["trainer"])

    def write_samples(self, images: np.ndarray[Any, Any], rows: list[dict[str, Any]]) -> None:
        """Images uint8 [N, H, W, C] as PNG files, and what was asked and found of each as JSON."""
        folder = self.path / SAMPLES
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(images):
            shown = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
            Image.fromarray(np.ascontiguousarray(shown)).save(folder / f"{index:03d}.png")
        write_text(folder / "samples.json", json.dumps(rows, indent=1) + "\n")

    def write_insight(self, found: Mapping[str, Any]) -> None:
        """Write ``insight.json``, what the report shows beyond the summary."""
        write_text(self.path / INSIGHT, json.dumps(found) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whose presence says that the run is finished."""
        write_text(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")


def summary_of(run: Path) -> dict[str, Any] | None:
    """The figures of the finished run in a folder, or None where there are none; RequestError where they are
    damaged."""
    path = run / SUMMARY
    try:
        found = from_json(read_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({first_line(error)}); start again with --overwrite") from error
    missing = _FIGURES - found.keys() if isinstance(found, dict) else _FIGURES
    if missing:
        raise RequestError(f"{path} is damaged (it has no {min(missing)}); start again with --overwrite")
    return dict(found)


@contextmanager
def claim(path: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Hold ``path`` for one run with ``settings``; nothing else may write there until the block ends.

    Raises:
        RequestError: as ``require_free`` does, another process holds it, or the settings of the run to resume differ.
        RunError: something could not be written within the block, such as on a full disk.
    """
    require_free(path, resume=resume, overwrite=overwrite)
    fresh = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / _LOCK, timeout=0):
            write_text(path / _OWNER, f"process {os.getpid()} on {socket.gethostname()}")
            try:
                _prepare(path, settings, resume=resume)
                yield RunFolder(path)
            finally:
                (path / _OWNER).unlink(missing_ok=True)
    except Timeout:
        owner = path / _OWNER
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise RequestError(f"the run folder {path} is in use by {who}; wait for it or choose another --out") from None
    except (PermissionError, NotADirectoryError) as error:
        raise RequestError(
            f"the run folder {path} cannot be written: {error.strerror}; choose another --out"
        ) from error
    except OSError as error:
        raise RunError(
            f"the run in {path} stopped ({error.strerror or first_line(error)}); its last checkpoint is whole: "
            "mend the cause and go on with --resume"
        ) from error
    finally:
        if fresh and path.exists() and not any(name != _LOCK for name in os.listdir(path)):
            shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def require_free(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Look whether a run may use the folder ``path``; nothing is changed.

    Raises:
        RequestError: ``resume`` and ``overwrite`` contradict each other, the folder holds a run already (and neither
            of them), there is nothing to resume, what is there is damaged, or it is not a run folder.
    """
    if resume and overwrite:
        raise RequestError("--resume and --overwrite contradict each other; give one of them")
    if path.exists() and not path.is_dir():
        raise RequestError(f"{path} is a file; give a folder as --out")
    stored = _stored_settings(path)
    holds_run = stored is not None
    if not holds_run and (path / _LOCK).exists() and (path / CONFIG).exists():
        if overwrite:
            return
        raise RequestError(f"{path / CONFIG} is damaged; start the run again with --overwrite")
    if resume and not holds_run:
        raise RequestError(f"there is no run in {path} to resume; leave out --resume to start one")
    if resume and stored is not None and stored["format"] != FORMAT:
        raise RequestError(
            f"the run in {path} is of format {stored['format']} and this version goes on with format {FORMAT}; resume "
            "it with the version of acq that began it, or start again with --overwrite"
        )
    if holds_run and not (resume or overwrite):
        raise RequestError(
            f"{path} already holds a run; give --resume to go on, --overwrite to start again, or another --out"
        )
    if path.exists() and not holds_run and any(name not in (_LOCK, _OWNER) for name in os.listdir(path)):
        raise RequestError(f"{path} holds other files and no run; give an empty or new folder as --out")


def _stored_settings(path: Path) -> dict[str, Any] | None:
    """What the folder's ``config.yaml`` says, or None where that file is not one of a run."""
    try:
        stored = from_yaml(read_text(path / CONFIG))
    except (OSError, ValueError):
        return None
    ours = isinstance(stored, dict) and {"origin", "teacher", "preprocessing", "config"} <= stored.keys()
    return {"format": 1, **stored, "config": as_begun(stored["config"])} if ours else None  # 1: the first said none


def as_begun(config: Any) -> Any:
    """A run's settings and those that it was begun before there were, as it took them."""
    if not isinstance(config, dict) or not isinstance(config.get("student"), dict):
        return config
    return {**config, "student": {"equalization": False, **config["student"]}}


def _prepare(path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    text = yaml.safe_dump({"format": FORMAT, **settings}, sort_keys=False)
    if resume:
        wanted = yaml.safe_load(text)
        key = _difference(_stored_settings(path), {**wanted, "config": as_begun(wanted["config"])})
        if key is not None:
            what = "teacher (its weights are not those the run began with)" if key == "teacher" else key
            raise RequestError(
                f"the run in {path} has another {what}; resume it with what its {CONFIG} says, "
                "or start again with --overwrite"
            )
        return
    for name in _CONTENTS:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    write_text(path / CONFIG, text)


def _difference(stored: Any, wanted: Any, key: str = "") -> str | None:
    """The first key whose value differs, dotted, or None."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in {**stored, **wanted}:
            found = _difference(stored.get(name), wanted.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if stored == wanted else key
