"""Every reader of files from outside gets damaged and hostile ones: it returns a value or raises ``RequestError``.

``ACQ_FUZZ=10000`` gives each reader so many inputs, different ones each time (``make fuzz``). By default there are few,
always the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fuzz_imports
import numpy as np
import pytest
import torch
from answers import answering
from helpers import SIZE, student_from, student_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from acq.config import Config
from acq.core.outputs import Output
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.graph import onnx_model
from acq.files.documents import read_settings
from acq.files.images import read
from acq.files.screening import screened
from acq.network.trace import trace
from acq.quantization.student import Student
from acq.runs import checkpoint, student_file
from acq.runs.names import QUANTIZATION, STUDENT
from acq.zoo.checkpoints import apply_state, load_state
from acq.zoo.onnx.cutting import exits_of
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import graph_of
from acq.zoo.onnx.inputs import entrance_of
from acq.zoo.onnx.reading import read_model

LONG = "ACQ_FUZZ" in os.environ
COUNT = int(os.environ.get("ACQ_FUZZ", "200"))
YAML = b"preset: fast\nbits: w4a4\nseed: 7\nstudent: {steps: 11, losses: {logits: 0.5}}\nlayers: {conv2d: 5}\n"


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    ``prepare`` gets an empty folder, writes what the reader needs beside the file, and returns the file's valid
    content. ``read`` gets the path of ``file`` in that folder.
    """

    file: str
    prepare: Callable[[Path], bytes]
    read: Callable[[Path], object]


def npz(_: Path) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    file = io.BytesIO()
    np.savez(file, images=images, labels=np.arange(6) % 3)
    return file.getvalue()


def image_file(folder: Path) -> bytes:
    """One of two classes; the other one's image stays whole."""
    for label in range(2):
        (folder / str(label)).mkdir()
        Image.new("RGB", (8, 8), (9, 8, 7)).save(folder / str(label) / "a.png")
    return (folder / "0" / "a.png").read_bytes()


def torch_file(_: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(20.0), "bias": torch.zeros(2)}, "epoch": 3}, file)
    return file.getvalue()


def old_torch_file(_: Path) -> bytes:
    """The format of torch before 1.6."""
    file = io.BytesIO()
    torch.save({"weight": torch.arange(20.0)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def foreign_torch_file(_: Path) -> bytes:
    """A whole module, with arrays and hyper-parameters beside it."""
    file = io.BytesIO()
    torch.save({"model": small_network(), "mean": np.zeros(3), "args": Namespace(data=Path("/a"), rate=1)}, file)
    return file.getvalue()


def npz_weights(_: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: value.numpy() for name, value in small_network().state_dict().items()})
    return file.getvalue()


def checkpoint_file(folder: Path) -> bytes:
    checkpoint.save(folder / "state.pt", {"step": 1, "weights": torch.arange(30.0)})
    return (folder / "state.pt").read_bytes()


def onnx_file(_: Path) -> bytes:
    student = student_of("residual").eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
    return onnx_model(student).SerializeToString()


def nested() -> Student:
    """A student that returns a structure."""
    return student_from(trace(answering("tuple"), SIZE))


def student_part(name: str, made: Callable[[], Student] | None = None) -> Callable[[Path], bytes]:
    """One file of a saved student; the others stay whole."""

    def prepare(folder: Path) -> bytes:
        student_file.save(student_of("residual") if made is None else made(), folder, {"origin": {}, "config": {}})
        return (folder / name).read_bytes()

    return prepare


EIGHT = Preprocessing((3, 8, 8), (0.5,) * 3, (0.2,) * 3)


def read_image_file(path: Path) -> object:
    return read(path.parents[1], preprocessing=EIGHT, output=Output.of("class", 2)).images[:]


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def read_weights(path: Path) -> object:
    apply_state(small_network(), load_state(path), path)
    return None


def read_student(path: Path) -> object:
    return student_file.load(path.parent)


def read_signed_weights(path: Path) -> object:
    """With a valid digest, so that the fuzzing reaches the code behind it."""
    document = path.with_name(QUANTIZATION)
    content = json.loads(document.read_text())
    content["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    document.write_text(json.dumps(content))
    return student_file.load(path.parent)


def read_signed_checkpoint(path: Path) -> object:
    """With a valid digest, so that the fuzzing reaches the code behind it."""
    content = path.read_bytes()
    path.write_bytes(b"acq checkpoint 1\n" + hashlib.sha256(content).digest() + content)
    return checkpoint.load(path)


def read_graph(path: Path) -> object:
    """A foreign file up to its graph; ``fuzz_imports.py`` runs it too, in a process of its own."""
    model = read_model(path)
    return folded(graph_of(model, entrance_of(model).name, exits_of(model, [])))


READERS = {
    "npz": Reader("a.npz", npz, lambda path: read(path, preprocessing=EIGHT, output=Output.of("class", 3))),
    "image file": Reader("0/a.png", image_file, read_image_file),
    "settings": Reader("a.yaml", lambda _: YAML, lambda path: Config.create("default", read_settings(path))),
    "pickle": Reader("a.pth", torch_file, load_state),
    "old pickle": Reader("a.th", old_torch_file, load_state),
    "foreign pickle": Reader("a.ckpt", foreign_torch_file, read_weights),
    "npz of weights": Reader("a.npz", npz_weights, read_weights),
    "safetensors": Reader("a.safetensors", lambda _: save({"weight": torch.arange(20.0)}), load_state),
    "checkpoint": Reader("state.pt", checkpoint_file, checkpoint.load),
    "signed checkpoint": Reader("state.pt", torch_file, read_signed_checkpoint),
    "graph": Reader(QUANTIZATION, student_part(QUANTIZATION), read_student),
    "graph of a structure": Reader(QUANTIZATION, student_part(QUANTIZATION, nested), read_student),
    "weights": Reader(STUDENT, student_part(STUDENT), read_student),
    "signed weights": Reader(STUDENT, student_part(STUDENT), read_signed_weights),
    "onnx": Reader("a.onnx", onnx_file, screened),
    "onnx network": Reader("a.onnx", lambda _: fuzz_imports.sizes().SerializeToString(), read_graph),
}
TOKENS = [b"9", b"-1", b"null", b"1e999", b"[", b'"', b"{}"]
POSITION = st.floats(0, 1)  # as a share of the file
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), POSITION, st.just(b"")),
        st.tuples(st.just("flip"), POSITION, st.binary(min_size=1, max_size=1)),
        st.tuples(st.just("insert"), POSITION, st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("replace"), POSITION, st.sampled_from(TOKENS)),
        st.tuples(st.just("repeat"), POSITION, st.just(b"")),
        st.tuples(st.just("other"), st.just(0.0), st.binary(max_size=60)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, piece in changes:
        at = int(share * len(content))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (piece[0] or 1)]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "replace":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "repeat":
            content = content + content[at:]
        elif kind == "other":
            content = piece
    return content


@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_a_value_or_a_request_error(name: str, tmp_path: Path) -> None:
    """The valid file is read; changed ones raise no other exception."""
    reader = READERS[name]
    valid, path = reader.prepare(tmp_path), tmp_path / reader.file
    path.write_bytes(valid)
    reader.read(path)

    @settings(max_examples=COUNT, derandomize=not LONG, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES)
    def fuzz(changes: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(changed(valid, changes))
        with warnings.catch_warnings(), suppress(RequestError):
            warnings.simplefilter("ignore")
            reader.read(path)

    fuzz()


def searched(program: str, *arguments: str | int, folder: Path) -> dict[str, int]:
    """What a search in a process of its own found; the process must survive."""
    seed = secrets.randbelow(2**32) if LONG else 0
    command = [sys.executable, str(Path(__file__).with_name(program)), *map(str, (*arguments, seed, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.returncode, done.stderr[-2000:])
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_screened_file_does_not_break_the_engine(tmp_path: Path) -> None:
    """ONNX Runtime gives logits or one line for every changed file that passes the screening; its process survives."""
    found = searched("fuzz_engine.py", COUNT, folder=tmp_path)
    assert sum(found.values()) == COUNT
    assert found["run"] > COUNT // 50


def test_a_foreign_onnx_file_is_imported_or_refused_in_one_line(tmp_path: Path) -> None:
    """Whatever is changed in it: no other exception, no crash, and no more memory than a limit."""
    found = searched("fuzz_imports.py", COUNT, folder=tmp_path)
    assert found.keys() == {"refused", "imported"}
    assert sum(found.values()) == COUNT


@pytest.mark.parametrize(
    ("kind", "count"), [("folders", COUNT if LONG else 40), ("networks", COUNT // 5 if LONG else 2)]
)
def test_a_changed_run_folder_and_a_drawn_network_get_a_file_or_one_line(kind: str, count: int, tmp_path: Path) -> None:
    """No graph of a run folder and no network crashes the process that loads, saves and exports it."""
    found = searched("fuzz_students.py", kind, count, folder=tmp_path)
    assert sum(found.values()) == count
    assert found.get("exported", 0) > 0
    assert found.get("exported, differs", 0) <= count // 50  # a tie on few images
