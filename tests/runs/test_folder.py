from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from acq.core.values import Record
from acq.errors import RequestError, RunError
from acq.runs import checkpoint
from acq.runs.folder import FORMAT, RunFolder, claim, free_folder, require_free, require_run, summary_of
from acq.runs.names import CONFIG, CONTENTS, DIAGNOSTICS, METRICS, SAMPLES, STATE, SUMMARY

SETTINGS = {
    "origin": {"model": "toy"},
    "teacher": "0" * 64,
    "preprocessing": {"mean": [0.5]},
    "config": {"bits": "w4a4", "student": {"steps": 4}},
    "sizes": [3, 16, 16],
}
FIGURES = {"bits": "w4a4", "placement": "deployable", "preset": "fast", "seed": 0, "seconds": 1.5, "quantized_bytes": 9}


def begin(
    path: Path, settings: dict[str, Any] = SETTINGS, resume: bool = False, overwrite: bool = False
) -> AbstractContextManager[RunFolder]:
    return claim(path, settings, resume=resume, overwrite=overwrite)


def finished(path: Path) -> Path:
    """A folder with a whole run in it."""
    with begin(path) as folder:
        folder.log(Record("student", 10, 20, 1.5, {"logits": 0.25}))
        folder.save_state({"seconds": 1.5})
        folder.write_diagnostics({"centres": []})
        folder.write_summary(FIGURES)
    return path


def names(path: Path) -> set[str]:
    return {name for name in os.listdir(path) if name != ".lock"}


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_is_written_where_it_is_expected(tmp_path: Path) -> None:
    """Settings, log, state, diagnostics and summary are read back from the files of the contract."""
    path = finished(tmp_path / "deep" / "run")
    assert yaml.safe_load((path / CONFIG).read_text()) == {"format": FORMAT, **SETTINGS}
    line = json.loads((path / METRICS).read_text())
    assert line == {"phase": "student", "step": 10, "steps": 20, "seconds": 1.5, "values": {"logits": 0.25}}
    assert checkpoint.load(path / STATE) == {"format": FORMAT, "training": {"seconds": 1.5}}
    assert json.loads((path / DIAGNOSTICS).read_text()) == {"centres": []}
    assert json.loads((path / SUMMARY).read_text()) == FIGURES == summary_of(path)
    assert names(path) == {CONFIG, METRICS, SUMMARY, DIAGNOSTICS, "checkpoint"}


def test_the_log_has_a_line_per_record(tmp_path: Path) -> None:
    """Records are appended in order, with seconds to the millisecond."""
    with begin(tmp_path / "run") as folder:
        for step in range(3):
            folder.log(Record("generator", step, 3, 0.123456 * step, {}))
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["seconds"] for line in lines] == [0.0, 0.123, 0.247]


def test_a_folder_with_a_run_is_not_taken_again(tmp_path: Path) -> None:
    """Without an option nothing changes, and the message gives both ways out."""
    path = finished(tmp_path / "run")
    before = contents(path)
    with pytest.raises(RequestError, match=r"already holds a run; give --resume .*--overwrite"), begin(path):
        pass
    assert contents(path) == before


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    """All files of a run are removed, and files that somebody else put there stay."""
    path = finished(tmp_path / "run")
    for name in CONTENTS:
        if name != CONFIG and "." in name:
            (path / name).write_text("old")
    (path / SAMPLES).mkdir()
    (path / "notes.txt").write_text("mine")
    (path / "other").mkdir()
    (path / "other" / "file").write_text("mine")
    with begin(path, {"seed": 1}, overwrite=True) as folder:
        with pytest.raises(RequestError, match="no finished run"):
            summary_of(path)
        assert folder.load_state() is None
        assert names(path) == {CONFIG, "notes.txt", "other", ".owner"}
    assert (path / "notes.txt").read_text() == (path / "other" / "file").read_text() == "mine"
    assert yaml.safe_load((path / CONFIG).read_text()) == {"format": FORMAT, "seed": 1}


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    """Neither a new run nor one that overwrites starts in a folder of files that are no run."""
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="holds other files"), begin(tmp_path, overwrite=overwrite):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_configuration_of_something_else_is_no_run(tmp_path: Path) -> None:
    """``--overwrite`` deletes nothing where ``config.yaml`` is not that of a run, or cannot be read."""
    for text in ("name: a site\n", "[unclosed", "just text\n"):
        path = tmp_path / str(len(text))
        (path / SAMPLES).mkdir(parents=True)
        (path / CONFIG).write_text(text)
        with pytest.raises(RequestError, match="holds other files and no run"), begin(path, overwrite=True):
            pass
        assert (path / CONFIG).read_text() == text
        assert (path / SAMPLES).is_dir()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """A run folder may exist if it is empty, and overwriting nothing is no mistake."""
    (tmp_path / "one").mkdir()
    with begin(tmp_path / "one"):
        pass
    with begin(tmp_path / "two", overwrite=True):
        pass
    assert (tmp_path / "one" / CONFIG).exists()
    assert (tmp_path / "two" / CONFIG).exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_resuming_needs_a_run(tmp_path: Path, kind: str) -> None:
    """Where there is no run to resume, none is made."""
    path = tmp_path / "run"
    if kind != "missing":
        path.mkdir()
    if kind == "other":
        (path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=r"no run in .* to resume; leave out --resume"), begin(path, resume=True):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"config": {"bits": "w3a3", "student": {"steps": 4}}}, "config.bits"),
        ({"config": {"bits": "w4a4", "student": {"steps": 5}}}, "config.student.steps"),
        ({"config": {"bits": "w4a4", "student": {"steps": 4}, "new": 1}}, "config.new"),
        ({"config": {"bits": "w4a4", "student": {}}}, "config.student.steps"),
        ({"origin": {}}, "origin.model"),
        ({"sizes": [3, 32, 32]}, "sizes"),
    ],
)
def test_a_run_is_resumed_with_its_own_settings(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    """Other settings are refused by the first key that differs, and the run stays as it was."""
    path = finished(tmp_path / "run")
    before = contents(path)
    with pytest.raises(RequestError, match=f"another {key};.*--overwrite"), begin(path, SETTINGS | change, resume=True):
        pass
    assert contents(path) == before
    with begin(path, {**SETTINGS, "sizes": (3, 16, 16)}, resume=True):
        assert summary_of(path) == FIGURES


@pytest.mark.parametrize("format", [1, 7, None])
def test_a_run_of_another_format_is_not_resumed(tmp_path: Path, format: int | None) -> None:
    """A run of another version is refused with both ways out, and can be overwritten."""
    path = finished(tmp_path / "run")
    stored = SETTINGS if format is None else {**SETTINGS, "format": format}
    (path / CONFIG).write_text(yaml.safe_dump(stored))
    words = rf"has format {format} and this version continues format {FORMAT}; .*start again with --overwrite"
    with pytest.raises(RequestError, match=words), begin(path, resume=True):
        pass
    with begin(path, overwrite=True) as folder:
        assert folder.load_state() is None


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    """A resumed run repeats the steps after its checkpoint, so their lines are removed and no others."""
    path = tmp_path / "run"
    with begin(path) as folder:
        for step in range(6):
            folder.log(Record("student", step, 6, step + 0.0004, {}))
            if step == 3:
                folder.save_state({"seconds": step + 0.0004})
    with begin(path, resume=True) as folder:
        assert folder.load_state() == {"seconds": 3.0004}
    assert [json.loads(line)["step"] for line in (path / METRICS).read_text().splitlines()] == [0, 1, 2, 3]


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    """A process that is killed while it writes a line does not cost the run."""
    path = tmp_path / "run"
    with begin(path) as folder:
        folder.log(Record("generator", 1, 6, 0.5, {}))
        folder.save_state({"seconds": 1.0})
    with (path / METRICS).open("a") as file:
        file.write('{"phase": "generator", "st')
    with begin(path, resume=True) as folder:
        folder.load_state()
    assert len((path / METRICS).read_text().splitlines()) == 1


def test_a_run_without_a_checkpoint_starts_its_log_again(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint has nothing to continue from."""
    path = tmp_path / "run"
    with begin(path) as folder:
        folder.log(Record("generator", 1, 6, 0.5, {}))
    with begin(path, resume=True) as folder:
        assert folder.load_state() is None
        assert not (path / METRICS).exists()


@pytest.mark.parametrize("line", ["[" * 10**5, "{}", "3", "no JSON"])
def test_a_damaged_log_or_summary_is_refused(tmp_path: Path, line: str) -> None:
    """One line names the damaged file and the way out."""
    path = finished(tmp_path / "run")
    (path / METRICS).write_text(line + "\n")
    (path / SUMMARY).write_text(line)
    with begin(path, resume=True) as folder:
        for name, read in ((METRICS, folder.load_state), (SUMMARY, lambda: summary_of(path))):
            with pytest.raises(RequestError, match=rf"{name} is damaged \(.*\); start again with --overwrite"):
                read()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """The log is left as it was."""
    path = finished(tmp_path / "run")
    (path / STATE).write_bytes(b"nothing")
    before = (path / METRICS).read_text()
    with begin(path, resume=True) as folder, pytest.raises(RequestError, match=r"state\.pt cannot be read"):
        folder.load_state()
    assert (path / METRICS).read_text() == before


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    """A whole file that holds no state of this version is not half understood."""
    path = tmp_path / "run"
    for state in ({"weights": [1.0]}, {"format": FORMAT + 1, "training": {}}, {"format": FORMAT, "training": 3}):
        with begin(path, overwrite=True):
            checkpoint.save(path / STATE, state)
        with begin(path, resume=True) as folder, pytest.raises(RequestError, match=r"another format; .*--overwrite"):
            folder.load_state()


def test_damaged_settings_of_a_run_are_refused_and_can_be_overwritten(tmp_path: Path) -> None:
    """The way out that the message gives works."""
    path = finished(tmp_path / "run")
    (path / CONFIG).write_text("[unclosed")
    for resume in (True, False):
        with (
            pytest.raises(RequestError, match=r"config.yaml is damaged; start the run again with --overwrite"),
            begin(path, resume=resume),
        ):
            pass
    with begin(path, overwrite=True):
        assert yaml.safe_load((path / CONFIG).read_text()) == {"format": FORMAT, **SETTINGS}


def test_resuming_and_overwriting_contradict_each_other(tmp_path: Path) -> None:
    """Both options together are refused, whatever the folder holds."""
    with pytest.raises(RequestError, match="contradict each other; give one of them"):
        require_free(tmp_path, resume=True, overwrite=True)


def test_only_a_finished_run_is_one(tmp_path: Path) -> None:
    """A missing folder, an unfinished run and a folder of other files are told apart."""
    with pytest.raises(RequestError, match=r"there is no run folder .*none; give a folder that acq quantize wrote"):
        require_run(tmp_path / "none")
    with pytest.raises(RequestError, match=r"there is no finished run in .*; give a folder of acq quantize"):
        require_run(tmp_path)
    with begin(tmp_path / "run"):
        pass
    with pytest.raises(RequestError, match=r"there is no finished run in .* yet; continue it with --resume"):
        require_run(tmp_path / "run")
    require_run(finished(tmp_path / "other"))


def test_a_free_folder_is_numbered(tmp_path: Path) -> None:
    """The default folder has the model's name and bits, and a number from the second on."""
    made = []
    for _ in range(3):
        made.append(free_folder("resnet20-cifar10", "w4a4", tmp_path))
        made[-1].mkdir()
    assert [path.name for path in made] == [f"resnet20-cifar10-w4a4{end}" for end in ("", "-2", "-3")]
    assert {path.parent for path in made} == {tmp_path}
    assert free_folder("resnet20-cifar10", "w8a8") == Path("runs/resnet20-cifar10-w8a8")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("my.nets:build", "my.nets-build-w4a4"),
        ("timm:mobilenetv3_small_100.lamb_in1k", "timm-mobilenetv3_small_100.lamb_in1k-w4a4"),
        ("../up/and/away.onnx", "away-w4a4"),
        ("TorchVision:ResNet18", "torchvision-resnet18-w4a4"),
    ],
)
def test_a_free_folder_has_a_plain_name(tmp_path: Path, model: str, name: str) -> None:
    """Characters that no folder should have become dashes, and the folder stays below its root."""
    assert free_folder(model, "w4a4", tmp_path) == tmp_path / name


HOLD = """
import sys
from pathlib import Path
from acq.runs.folder import claim
settings = dict.fromkeys(("origin", "teacher", "preprocessing", "config"), {})
with claim(Path(sys.argv[1]), settings, resume=False, overwrite=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_in_use_names_its_user(tmp_path: Path) -> None:
    """While a process holds a folder nobody else gets it, and afterwards anybody does."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = contents(path)
        for resume in (True, False):
            with (
                pytest.raises(RequestError, match=f"in use by process {other.pid} on .*; wait for it"),
                begin(path, SETTINGS, resume=resume, overwrite=not resume),
            ):
                pass
        assert contents(path) == before
        other.communicate("\n")
    with begin(path, {key: {} for key in ("origin", "teacher", "preprocessing", "config")}, resume=True):
        pass


def test_a_dead_owner_does_not_hold_a_folder(tmp_path: Path) -> None:
    """Files that a killed process left lock nobody out."""
    path = tmp_path / "run"
    path.mkdir()
    (path / ".lock").touch()
    (path / ".owner").write_text("process 1 on elsewhere")
    with begin(path):
        pass
    assert not (path / ".owner").exists()


def test_the_folder_is_given_up_after_an_error(tmp_path: Path) -> None:
    """A run that fails can be resumed at once."""
    path = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), begin(path):
        raise ZeroDivisionError
    with begin(path, resume=True):
        pass


def test_a_full_disk_is_a_failed_run(tmp_path: Path) -> None:
    """An error of the system within a run says its cause and how to continue."""
    words = r"stopped \(No space left on device\).*continue with --resume"
    with pytest.raises(RunError, match=words), begin(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "run" / CONFIG).exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A run is not written over a file, nor below one."""
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "run"):
        with pytest.raises(RequestError, match="--out") as caught, begin(path):
            pass
        assert "\n" not in str(caught.value)
    assert file.read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing rights are an error of the request, and no folder stays."""

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("acq.runs.folder.write_atomically", refuse)
    with pytest.raises(RequestError, match="cannot be written: Permission denied"), begin(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
