from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acq.errors import RequestError
from acq.runs import checkpoint
from acq.runs.checkpoint import CheckpointWarning

STATE = {"step": 3, "seconds": 0.1 + 0.2, "phase": "student", "images": None, "weights": {"a": torch.arange(5.0)}}


def saved(value: Any) -> bytes:
    """A checkpoint of any value, with its digest."""
    file = io.BytesIO()
    torch.save(value, file)
    return signed(file.getvalue())


def signed(content: bytes) -> bytes:
    return b"acq checkpoint 1\n" + hashlib.sha256(content).digest() + content


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Tensors, numbers, text and containers of them, in a folder that is created; no other file remains."""
    path = tmp_path / "checkpoint" / "state.pt"
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam([{"params": network.parameters(), "lr": 0.1}])
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint.save(path, {**STATE, "rng": torch.get_rng_state(), "optimizer": optimizer.state_dict()})
    state = checkpoint.load(path)
    plain = ("step", "seconds", "phase", "images")
    assert [state[name] for name in plain] == [STATE[name] for name in plain]
    assert torch.equal(state["weights"]["a"], torch.arange(5.0))
    assert torch.equal(state["rng"], torch.get_rng_state())
    assert state["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    """The newest is loaded, and the temporary files of killed processes are removed."""
    (tmp_path / ".state.partial-1.pt").touch()
    for step in range(3):
        checkpoint.save(tmp_path / "state.pt", {"step": step})
    assert checkpoint.load(tmp_path / "state.pt") == {"step": 2}
    assert checkpoint.load(checkpoint.previous(tmp_path / "state.pt")) == {"step": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.pt", "state.pt.previous"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A full disk or an interrupt costs only the new state, and leaves no temporary file."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        checkpoint.save(path, STATE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    checkpoint.save(path, {"step": 9})
    assert checkpoint.load(path) == {"step": 9}


def test_a_file_that_reads_back_differently_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk changes a byte while writing, the old file stays."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"step": 1})
    monkeypatch.setattr(os, "fsync", lambda file: os.pwrite(file, b"?", 100))
    with pytest.raises(OSError, match="reads back differently"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [torn, flipped, Path.unlink])
def test_the_previous_checkpoint_is_used(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """If the newest is torn, has one flipped bit or is missing after a kill between two renames; with a warning."""
    path = tmp_path / "state.pt"
    for step in range(3):
        checkpoint.save(path, {"step": step, "weights": torch.arange(1000.0)})
    harm(path)
    assert checkpoint.exists(path)
    with pytest.warns(CheckpointWarning, match=r"state\.pt.*; the one before it is used"):
        assert checkpoint.load(path)["step"] == 1
    flipped(checkpoint.previous(path))
    with pytest.raises(RequestError, match=r"state\.pt.*--overwrite"):
        checkpoint.load(path)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("cut", [0, 10, 60, 1000])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    """One line names the file and the way out."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"weights": torch.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RequestError, match=r"state\.pt cannot be read .*--overwrite") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"garbage", b"\x80\x04.", b"PK\x03\x04", signed(b""), signed(b"garbage"), saved([])[49:]]
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    """Also with a valid digest, and a file of torch without one."""
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"cannot be read .*--overwrite") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A pickle that would call a function is refused first, although its digest is valid."""
    path, mark = tmp_path / "state.pt", tmp_path / "mark"
    for content in (saved({"step": Trap(mark)}), signed(pickle.dumps({"step": Trap(mark)}))):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="cannot be read"):
            checkpoint.load(path)
    assert not mark.exists()


def test_a_missing_file_and_another_value_are_refused(tmp_path: Path) -> None:
    """No file, a folder, and a tensor alone are no checkpoints."""
    path = tmp_path / "state.pt"
    assert not checkpoint.exists(path)
    for missing in (path, tmp_path):
        with pytest.raises(RequestError, match="there is no checkpoint"):
            checkpoint.load(missing)
    path.write_bytes(saved(torch.zeros(3)))
    with pytest.raises(RequestError, match="holds no run"):
        checkpoint.load(path)
