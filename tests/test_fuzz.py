"""Every reader of files from elsewhere takes damaged and hostile ones: it gives a value or raises a ``RequestError``.

``ACQ_FUZZ=10000`` gives each reader so many inputs, other ones every time; by default they are few, so that the whole
takes under two minutes, and always the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, student_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from acq.config import Config
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.graph import onnx_model
from acq.files.images import read
from acq.files.limits import read_settings
from acq.files.screening import screened
from acq.runs import checkpoint
from acq.runs import student_file as artifact
from acq.zoo.checkpoints import load_state

NIGHT = "ACQ_FUZZ" in os.environ
COUNT = int(os.environ.get("ACQ_FUZZ", "500"))
KNOWN = {"input_size": (3, 8, 8), "classes": 3}


def npz() -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    file = io.BytesIO()
    np.savez(file, images=images, labels=np.arange(6) % 3)
    return file.getvalue()


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(20.0), "bias": torch.zeros(2)}, "epoch": 3}, file)
    return file.getvalue()


def saved() -> bytes:
    path = FOLDER / "state.pt"
    checkpoint.save(path, {"step": 1, "weights": torch.arange(30.0)})
    return path.read_bytes()


def pickled_before() -> bytes:
    """As torch wrote them before 1.6."""
    file = io.BytesIO()
    torch.save({"weight": torch.arange(20.0)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def onnx_file() -> bytes:
    student = student_of("residual").eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
    return onnx_model(student).SerializeToString()


def of_run(name: str) -> Callable[[], bytes]:
    def content() -> bytes:
        artifact.save(student_of("residual"), FOLDER / "run", {"origin": {}, "config": {}})
        return (FOLDER / "run" / name).read_bytes()

    return content


def read_run(name: str) -> Callable[[Path], object]:
    def reader(path: Path) -> object:
        folder = path.parent / "run"
        if not folder.exists():
            shutil.copytree(FOLDER / "run", folder)
        shutil.copy(path, folder / name)
        try:
            return artifact.load(folder)
        finally:
            shutil.copy(FOLDER / "run" / name, folder / name)

    return reader


def read_signed_weights(path: Path) -> object:
    """With the digest that they would have, so that what comes behind it is reached."""
    document = json.loads((FOLDER / "run" / artifact.DOCUMENT).read_text())
    document["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / artifact.DOCUMENT).write_text(json.dumps(document))
    return artifact.load(path.parent)


def read_signed_checkpoint(path: Path) -> object:
    """The same."""
    content = path.read_bytes()
    path.write_bytes(checkpoint._MARK + checkpoint._digest(content) + content)
    return checkpoint.load(path)


def read_pictures(path: Path) -> object:
    for label in range(3):
        (path.parent / "classes" / str(label)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, path.parent / "classes" / str(label) / "a.png")
    return read(path.parent / "classes", **KNOWN).images[:2]  # type: ignore[arg-type]


FOLDER = Path()
YAML = b"preset: fast\nbits: w4a4\nseed: 7\nstudent: {steps: 11, losses: {logits: 0.5}}\nlayers: {conv2d: 5}\n"
READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], object]]] = {
    "npz": ("a.npz", npz, lambda path: read(path, **KNOWN)),  # type: ignore[arg-type]
    "picture": ("a.png", picture, read_pictures),
    "settings": ("a.yaml", lambda: YAML, lambda path: Config.create("default", read_settings(path))),
    "pickle": ("a.pth", pickled, load_state),
    "old pickle": ("a.th", pickled_before, load_state),
    "safetensors": ("a.safetensors", lambda: save({"weight": torch.arange(20.0)}), load_state),
    "checkpoint": ("state.pt", saved, checkpoint.load),
    "graph": ("quantization.json", of_run(artifact.DOCUMENT), read_run(artifact.DOCUMENT)),
    "weights": ("student.safetensors", of_run(artifact.WEIGHTS), read_run(artifact.WEIGHTS)),
    "signed weights": ("student.safetensors", of_run(artifact.WEIGHTS), read_signed_weights),
    "signed checkpoint": ("state.pt", pickled, read_signed_checkpoint),
    "onnx": ("a.onnx", onnx_file, screened),
}
# cut, bits flipped, bytes put in, pieces doubled, and something else altogether
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
        st.tuples(st.just("flip"), st.floats(0, 1), st.binary(min_size=1, max_size=1)),
        st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
        st.tuples(
            st.just("instead"), st.floats(0, 1), st.sampled_from([b"9", b"-1", b"null", b"1e999", b"[", b'"', b"{}"])
        ),
        st.tuples(st.just("twice"), st.floats(0, 1), st.just(b"")),
        st.tuples(st.just("other"), st.just(0.0), st.binary(max_size=60)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, more in changes:
        at = int(share * len(content))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :]
        elif kind == "put":
            content = content[:at] + more + content[at:]
        elif kind == "instead":
            content = content[:at] + more + content[at + len(more) :]
        elif kind == "twice":
            content = content + content[at:]
        elif kind == "other":
            content = more
    return content


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_anything(name: str, tmp_path: Path) -> None:
    """What is whole is read; what is not is told in a line."""
    file, make, reader = READERS[name]
    whole, path = make(), tmp_path / file
    path.write_bytes(whole)
    reader(path)

    @settings(max_examples=COUNT, derandomize=not NIGHT, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES)
    def fuzz(changes: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(changed(whole, changes))
        with warnings.catch_warnings(), suppress(RequestError):
            warnings.simplefilter("ignore")
            reader(path)

    fuzz()


def test_what_may_be_opened_does_not_break_the_engine(tmp_path: Path) -> None:
    """Nor does it give anything but logits and errors of a line."""
    seed = secrets.randbelow(2**32) if NIGHT else 0
    command = [sys.executable, str(Path(__file__).with_name("fuzz_engine.py")), str(COUNT), str(seed), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.returncode, done.stderr[-2000:])
    found = json.loads(done.stdout)
    assert sum(found.values()) == COUNT
    assert found["run"] > COUNT // 50
