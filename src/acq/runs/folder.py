"""The folder of one run: who may use it, and what is written where."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from acq.core.values import Record
from acq.errors import RequestError, RunError, first_line
from acq.files.atomic import write_atomically
from acq.files.documents import from_json, from_yaml, read_text
from acq.runs import checkpoint
from acq.runs.names import CONFIG, CONTENTS, DIAGNOSTICS, METRICS, STATE, SUMMARY

FORMAT = 3  # of the run folder and of its checkpoint
_LOCK, _OWNER = ".lock", ".owner"
_FIGURES = {"bits", "placement", "preset", "seed", "seconds", "quantized_bytes"}  # every summary has them
_SETTINGS = {"origin", "teacher", "preprocessing", "config"}  # keys of config.yaml


class RunFolder:
    """A folder that this process has claimed; ``claim`` makes it.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, record: Record) -> None:
        """Append a record to ``metrics.jsonl``."""
        line = {**vars(record), "seconds": round(record.seconds, 3)}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the state of the training as the checkpoint from which ``--resume`` continues."""
        checkpoint.save(self.path / STATE, {"format": FORMAT, "training": dict(state)})

    def load_state(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; the log is cut to it. None where there is no checkpoint yet.

        Raises:
            RequestError: The checkpoint or the log is damaged.
        """
        log, path = self.path / METRICS, self.path / STATE
        if not checkpoint.exists(path):
            log.unlink(missing_ok=True)
            return None
        state = checkpoint.load(path)
        if state.get("format") != FORMAT or not isinstance(state.get("training"), dict):
            raise RequestError(f"the checkpoint {path} has another format; start again with --overwrite")
        try:
            lines = read_text(log).splitlines(keepends=True) if log.exists() else []
            whole = [line for line in lines if line.endswith("\n")]  # a killed process may leave half a line
            kept = [line for line in whole if from_json(line)["seconds"] <= state["training"]["seconds"] + 1e-3]
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{log} is damaged ({first_line(error)}); start again with --overwrite") from error
        write_atomically(log, "".join(kept))
        return dict(state["training"])

    def write_diagnostics(self, diagnostics: Mapping[str, Any]) -> None:
        """Write ``diagnostics.json``, which the report shows beside the summary."""
        write_atomically(self.path / DIAGNOSTICS, json.dumps(diagnostics) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``. A folder with this file holds a finished run."""
        write_atomically(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")


def require_run(path: Path) -> None:
    """Check that a folder exists and holds a finished run.

    Raises:
        RequestError: It does not.
    """
    if not path.is_dir():
        raise RequestError(f"there is no run folder {path}; give a folder that acq quantize wrote")
    if not (path / SUMMARY).exists():
        wait = " yet; continue it with --resume" if (path / CONFIG).exists() else "; give a folder of acq quantize"
        raise RequestError(f"there is no finished run in {path}{wait}")


def summary_of(path: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        RequestError: There is no finished run in the folder, or the summary is damaged.
    """
    require_run(path)
    summary = path / SUMMARY
    try:
        found = from_json(read_text(summary))
    except (OSError, ValueError) as error:
        raise RequestError(f"{summary} is damaged ({first_line(error)}); start again with --overwrite") from error
    missing = _FIGURES - found.keys() if isinstance(found, dict) else _FIGURES
    if missing:
        raise RequestError(f"{summary} is damaged (it has no {min(missing)}); start again with --overwrite")
    return dict(found)


def free_folder(model: str, bits: str, root: Path = Path("runs")) -> Path:
    """The first free folder ``runs/<model>-<bits>``, ``...-2``, ``...-3``.

    Args:
        model: As the user named it; characters that no folder name should have become dashes.
        bits: Such as w4a4.
        root: The folder of all runs.
    """
    short = Path(model).stem if model.endswith(".onnx") else model
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{short}-{bits}".lower()).strip("-.")
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(root / name for name in names if not (root / name).exists())


@contextmanager
def claim(path: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Hold a folder for one run; no other process may write there until the block ends.

    Args:
        path: Of the folder.
        settings: Of the run, written as ``config.yaml``.
        resume: Continue the run in the folder.
        overwrite: Delete the run in the folder.

    Raises:
        RequestError: As ``require_free``; another process holds it; or the settings of the run to resume differ.
        RunError: Something could not be written within the block, such as on a full disk.
    """
    require_free(path, resume=resume, overwrite=overwrite)
    fresh = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / _LOCK, timeout=0):
            write_atomically(path / _OWNER, f"process {os.getpid()} on {socket.gethostname()}")
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
            "remove the cause and continue with --resume"
        ) from error
    finally:
        if fresh and path.exists() and not any(name != _LOCK for name in os.listdir(path)):
            shutil.rmtree(path)


def require_free(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may use a folder; nothing changes.

    Raises:
        RequestError: ``resume`` and ``overwrite`` are both given; or the folder holds a run and neither is given; or
            there is nothing to resume; or the run is damaged; or the folder holds other files.
    """
    if resume and overwrite:
        raise RequestError("--resume and --overwrite contradict each other; give one of them")
    if path.exists() and not path.is_dir():
        raise RequestError(f"{path} is a file; give a folder as --out")
    stored = _stored_settings(path)
    if stored is None and (path / _LOCK).exists() and (path / CONFIG).exists():
        if overwrite:
            return
        raise RequestError(f"{path / CONFIG} is damaged; start the run again with --overwrite")
    if stored is None:
        _require_empty(path, resume)
        return
    if resume and stored.get("format") != FORMAT:
        raise RequestError(
            f"the run in {path} has format {stored.get('format')} and this version continues format {FORMAT}; "
            "resume it with the version of acq that began it, or start again with --overwrite"
        )
    if not (resume or overwrite):
        raise RequestError(
            f"{path} already holds a run; give --resume to continue it, --overwrite to start again, or another --out"
        )


def _require_empty(path: Path, resume: bool) -> None:
    if resume:
        raise RequestError(f"there is no run in {path} to resume; leave out --resume to start one")
    if path.exists() and any(name not in (_LOCK, _OWNER) for name in os.listdir(path)):
        raise RequestError(f"{path} holds other files and no run; give an empty or new folder as --out")


def _stored_settings(path: Path) -> dict[str, Any] | None:
    """The content of ``config.yaml``; None where it is not that of a run."""
    try:
        stored = from_yaml(read_text(path / CONFIG))
    except (OSError, ValueError):
        return None
    return dict(stored) if isinstance(stored, dict) and stored.keys() >= _SETTINGS else None


def _prepare(path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    text = yaml.safe_dump({"format": FORMAT, **settings}, sort_keys=False)
    if resume:
        key = _difference(_stored_settings(path), yaml.safe_load(text))
        if key is not None:
            what = "teacher (its weights are not those that the run began with)" if key == "teacher" else key
            raise RequestError(
                f"the run in {path} has another {what}; resume it with what its {CONFIG} says, "
                "or start again with --overwrite"
            )
        return
    _remove(path, CONTENTS)
    write_atomically(path / CONFIG, text)


def _remove(path: Path, names: Sequence[str]) -> None:
    for name in names:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _difference(stored: Any, wanted: Any, key: str = "") -> str | None:
    """The first key whose value differs, dotted; None where all agree."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in {**stored, **wanted}:
            if (key, name) == ("preprocessing", "framing"):
                continue  # of pictures that only measure
            found = _difference(stored.get(name), wanted.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if stored == wanted else key
