from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acq.errors import RequestError
from acq.runs import checkpoint
from acq.runs.checkpoint import CheckpointWarning

STATE = {"step": 3, "seconds": 0.1 + 0.2, "phase": "student", "pool": None, "weights": {"a": torch.arange(5.0)}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Tensors, numbers, names and containers of them come back equal bit for bit, in a folder made for them."""
    path = tmp_path / "checkpoint" / "state.pt"
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam([{"params": network.parameters(), "lr": 0.1}])
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint.save(path, {**STATE, "rng": torch.get_rng_state(), "optimizer": optimizer.state_dict()})
    state = checkpoint.load(path)
    assert {name: state[name] for name in ("step", "seconds", "phase", "pool")} == {
        name: STATE[name] for name in ("step", "seconds", "phase", "pool")
    }
    assert torch.equal(state["weights"]["a"], torch.arange(5.0))
    assert torch.equal(state["rng"], torch.get_rng_state())
    assert state["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_the_next_save_replaces_the_last(tmp_path: Path) -> None:
    """The newest is there, and the one before it."""
    for step in range(3):
        checkpoint.save(tmp_path / "state.pt", {"step": step})
    assert checkpoint.load(tmp_path / "state.pt") == {"step": 2}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.pt", "state.pt.previous"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A disk that is full half way, or a stop, costs the new state and not the previous one."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise error

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(type(error)):
        checkpoint.save(path, STATE)
    assert path.read_bytes() == before
    monkeypatch.undo()
    checkpoint.save(path, {"step": 9})
    assert checkpoint.load(path) == {"step": 9}


def test_what_reads_otherwise_than_it_was_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit at once: the new file goes, the old one stays."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"step": 1})
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self)[:-1] + b"?")
    with pytest.raises(OSError, match="what was written reads otherwise"):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [torn, flipped, Path.unlink])
def test_the_one_before_is_used(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Where the newest is torn, one bit of it is another, or a process was killed between two renames; it is said."""
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


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    """It had no digest."""
    torch.save({"step": 4}, tmp_path / "state.pt")
    assert checkpoint.load(tmp_path / "state.pt") == {"step": 4}


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_file_is_told_in_a_line(tmp_path: Path, cut: int) -> None:
    """However much of it is missing, the message names the file and the way out."""
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RequestError, match=r"state\.pt cannot be read .*--overwrite") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"garbage", b"\x80\x04.", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    """Bytes of something else are refused in the same way."""
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="--overwrite") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A pickle that would do something is refused before it does."""
    path, mark = tmp_path / "state.pt", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"step": Trap(mark)}))
    with pytest.raises(RequestError, match="cannot be read"):
        checkpoint.load(path)
    torch.save({"step": Trap(mark)}, path)
    with pytest.raises(RequestError, match="cannot be read"):
        checkpoint.load(path)
    assert not mark.exists()


def test_a_missing_file_and_another_content_are_told(tmp_path: Path) -> None:
    """Nothing there, a folder, and a tensor alone are no checkpoints."""
    with pytest.raises(RequestError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "state.pt")
    with pytest.raises(RequestError, match="there is no checkpoint"):
        checkpoint.load(tmp_path)
    torch.save(torch.zeros(3), tmp_path / "state.pt")
    with pytest.raises(RequestError, match="holds no run"):
        checkpoint.load(tmp_path / "state.pt")
