from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from acq.core.values import Record
from acq.errors import RequestError
from acq.runs import checkpoint
from acq.runs.folder import (
    CONFIG,
    METRICS,
    SAMPLES,
    STATE,
    SUMMARY,
    RunFolder,
    claim,
    require_free,
    summary_of,
    write_text,
)

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
        folder.write_samples(np.zeros((2, 8, 8, 3), np.uint8), [{"label": 0}, {"label": 1}])
        folder.write_summary(FIGURES)
    return path


def names(path: Path) -> set[str]:
    return {name for name in os.listdir(path) if name != ".lock"}


def test_a_run_of_another_format_is_not_resumed_and_an_unmarked_one_is(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    (path / CONFIG).write_text(yaml.safe_dump(SETTINGS))  # as the first versions did
    with begin(path, resume=True) as folder:
        assert folder.load_state() == {"seconds": 1.5}
    (path / CONFIG).write_text(yaml.safe_dump({**SETTINGS, "format": 7}))
    with (
        pytest.raises(RequestError, match="of format 7 and this version goes on with format 1"),
        begin(path, resume=True),
    ):
        pass
    with begin(path, overwrite=True) as folder:
        assert folder.load_state() is None


def test_a_run_of_before_a_setting_goes_on_as_it_began(tmp_path: Path) -> None:
    """What was not equalized then is not now, and may not be."""
    before, path = {**SETTINGS, "config": {"student": {"steps": 2}}}, tmp_path / "run"
    with claim(path, before, resume=False, overwrite=False) as folder:
        folder.save_state({"seconds": 1.5})
    for equalization in (False, True):
        now = {**before, "config": {"student": {"steps": 2, "equalization": equalization}}}
        expected = (
            pytest.raises(RequestError, match=r"config\.student\.equalization") if equalization else nullcontext()
        )
        with expected, claim(path, now, resume=True, overwrite=False) as folder:
            assert folder.load_state() == {"seconds": 1.5}


def test_a_run_is_written_where_it_is_expected(tmp_path: Path) -> None:
    """Settings, figures, state, samples and summary are read back from the files of the contract."""
    path = finished(tmp_path / "deep" / "run")
    assert yaml.safe_load((path / CONFIG).read_text()) == {"format": 1, **SETTINGS}
    line = json.loads((path / METRICS).read_text())
    assert line == {"phase": "student", "step": 10, "steps": 20, "seconds": 1.5, "values": {"logits": 0.25}}
    assert checkpoint.load(path / STATE) == {"format": 1, "trainer": {"seconds": 1.5}}
    assert json.loads((path / SUMMARY).read_text()) == FIGURES
    assert json.loads((path / SAMPLES / "samples.json").read_text())[1] == {"label": 1}
    assert names(path) == {CONFIG, METRICS, SUMMARY, SAMPLES, "checkpoint"}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_are_images(tmp_path: Path, channels: int) -> None:
    """Their pixels come back bit for bit, in grey or in the first three channels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 9, channels), np.uint8)
    with begin(tmp_path / "run") as folder:
        folder.write_samples(images, [])
    for index, image in enumerate(images):
        with Image.open(tmp_path / "run" / SAMPLES / f"{index:03d}.png") as found:
            shown = np.asarray(found)
        assert np.array_equal(shown, image[..., 0] if channels == 1 else image[..., :3])


def test_figures_are_appended(tmp_path: Path) -> None:
    """A line a record, in order."""
    with begin(tmp_path / "run") as folder:
        for step in range(3):
            folder.log(Record("generator", step, 3, 0.123456 * step, {}))
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["seconds"] for line in lines] == [0.0, 0.123, 0.247]


def test_a_folder_with_a_run_is_not_taken_again(tmp_path: Path) -> None:
    """Without a word about it, nothing is touched and the message gives both ways out."""
    path = finished(tmp_path / "run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(RequestError, match=r"already holds a run; give --resume .*--overwrite"), begin(path):
        pass
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_overwriting_clears_the_run_and_nothing_else(tmp_path: Path) -> None:
    """What a run writes is gone, what somebody else put there stays."""
    path = finished(tmp_path / "run")
    (path / "notes.txt").write_text("mine")
    (path / "other").mkdir()
    (path / "other" / "file").write_text("mine")
    (path / "student.safetensors").write_bytes(b"old")
    with begin(path, {"seed": 1}, overwrite=True) as folder:
        assert summary_of(path) is None
        assert folder.load_state() is None
        assert names(path) == {CONFIG, "notes.txt", "other", ".owner"}
    assert (path / "notes.txt").read_text() == (path / "other" / "file").read_text() == "mine"
    assert yaml.safe_load((path / CONFIG).read_text()) == {"format": 1, "seed": 1}


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    """Files and no run: neither a new run nor one that overwrites starts there."""
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="holds other files"), begin(tmp_path, overwrite=overwrite):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """It need not be new, and overwriting nothing is no mistake."""
    (tmp_path / "one").mkdir()
    with begin(tmp_path / "one"):
        pass
    with begin(tmp_path / "two", overwrite=True):
        pass
    assert (tmp_path / "one" / CONFIG).exists()
    assert (tmp_path / "two" / CONFIG).exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_resuming_needs_a_run(tmp_path: Path, kind: str) -> None:
    """Where there is none, none is made."""
    path = tmp_path / "run"
    if kind != "missing":
        path.mkdir()
    if kind == "other":
        (path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(RequestError, match=r"there is no run in .* to resume; leave out --resume"),
        begin(path, resume=True),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"config": {"bits": "w3a3", "student": {"steps": 4}}}, "config.bits"),
        ({"config": {"bits": "w4a4", "student": {"steps": 5}}}, "config.student.steps"),
        ({"config": {"bits": "w4a4", "student": {"steps": 4}, "new": 1}}, "config.new"),
        ({"origin": {}}, "origin.model"),
        ({"sizes": [3, 32, 32]}, "sizes"),
    ],
)
def test_a_run_is_resumed_with_its_own_settings(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    """Others are refused by the name of the first that differs, and the run stays as it was."""
    path = finished(tmp_path / "run")
    with pytest.raises(RequestError, match=f"another {key};.*--overwrite"), begin(path, SETTINGS | change, resume=True):
        pass
    assert yaml.safe_load((path / CONFIG).read_text()) == {"format": 1, **SETTINGS}
    with begin(path, {**SETTINGS, "sizes": (3, 16, 16)}, resume=True):
        assert summary_of(path) == FIGURES


def test_figures_are_cut_back_to_the_state(tmp_path: Path) -> None:
    """A resumed run repeats what came after its checkpoint, so those lines go and no others."""
    path = tmp_path / "run"
    with begin(path) as folder:
        for step in range(6):
            folder.log(Record("student", step, 6, step + 0.0004, {}))
            if step == 3:
                folder.save_state({"seconds": step + 0.0004})
    with begin(path, resume=True) as folder:
        assert folder.load_state() == {"seconds": 3.0004}
    assert [json.loads(line)["step"] for line in (path / METRICS).read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", ["[" * 10**5, "{}", "3", "no JSON"])
def test_figures_and_a_summary_that_are_damaged_are_told(tmp_path: Path, line: str) -> None:
    """In a line with the way out."""
    path = finished(tmp_path / "run")
    (path / METRICS).write_text(line + "\n")
    (path / SUMMARY).write_text(line)
    with begin(path, resume=True) as folder:
        for read in (folder.load_state, lambda: summary_of(path)):
            with pytest.raises(RequestError, match=r"is damaged \(.*\); start again with --overwrite"):
                read()


def test_a_run_without_a_state_starts_its_figures_anew(tmp_path: Path) -> None:
    """Killed before its first checkpoint, it has nothing to go on from and nothing to keep."""
    path = tmp_path / "run"
    with begin(path) as folder:
        folder.log(Record("generator", 1, 6, 0.5, {}))
    with begin(path, resume=True) as folder:
        assert folder.load_state() is None
        assert not (path / METRICS).exists()


def test_a_line_that_was_cut_is_dropped(tmp_path: Path) -> None:
    """A process killed while it wrote a line does not cost the run."""
    path = tmp_path / "run"
    with begin(path) as folder:
        folder.log(Record("generator", 1, 6, 0.5, {}))
        folder.save_state({"seconds": 1.0})
    with (path / METRICS).open("a") as file:
        file.write('{"phase": "generator", "st')
    with begin(path, resume=True) as folder:
        folder.load_state()
    assert len((path / METRICS).read_text().splitlines()) == 1


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    """The figures are left as they were."""
    path = finished(tmp_path / "run")
    (path / STATE).write_bytes(b"nothing")
    before = (path / METRICS).read_text()
    with begin(path, resume=True) as folder, pytest.raises(RequestError, match=r"state\.pt cannot be read"):
        folder.load_state()
    assert (path / METRICS).read_text() == before


HOLD = """
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from acq.runs.folder import claim
settings = dict.fromkeys(("origin", "teacher", "preprocessing", "config"), {})
with claim(Path(sys.argv[1]), settings, resume=False, overwrite=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_in_use_names_its_user(tmp_path: Path) -> None:
    """While another process holds it nobody else gets it, and afterwards anybody does."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = {file: file.read_bytes() for file in path.iterdir()}
        for resume in (True, False):
            with (
                pytest.raises(RequestError, match=f"in use by process {other.pid} on .*; wait for it"),
                begin(path, SETTINGS, resume=resume, overwrite=not resume),
            ):
                pass
        assert {file: file.read_bytes() for file in path.iterdir()} == before
        other.communicate("\n")
    with begin(path, {key: {} for key in ("origin", "teacher", "preprocessing", "config")}, resume=True):
        pass


def test_a_configuration_of_something_else_is_not_taken_for_a_run(tmp_path: Path) -> None:
    """``--overwrite`` deletes nothing from a folder whose config.yaml is not a run's, nor from one it cannot read."""
    for text in ("name: a site\n", "[unclosed", "just text\n"):
        path = tmp_path / str(len(text))
        (path / "samples").mkdir(parents=True)
        (path / CONFIG).write_text(text)
        with pytest.raises(RequestError, match="holds other files and no run"), begin(path, overwrite=True):
            pass
        assert (path / CONFIG).read_text() == text
        assert (path / "samples").is_dir()


def test_damaged_settings_of_a_run_are_told_and_overwritten(tmp_path: Path) -> None:
    """The way out that the message gives is one."""
    path = finished(tmp_path / "run")
    (path / CONFIG).write_text("[unclosed")
    for resume in (True, False):
        with (
            pytest.raises(RequestError, match=r"config.yaml is damaged; start the run again with --overwrite"),
            begin(path, resume=resume),
        ):
            pass
    with begin(path, overwrite=True):
        assert yaml.safe_load((path / CONFIG).read_text()) == {"format": 1, **SETTINGS}


def test_resuming_and_overwriting_contradict_each_other(tmp_path: Path) -> None:
    """Wherever they are asked for."""
    with pytest.raises(RequestError, match="contradict each other; give one of them"):
        require_free(tmp_path, resume=True, overwrite=True)


def test_a_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    """A readable file that is no checkpoint of this version is refused, not half understood."""
    path = tmp_path / "run"
    with begin(path):
        checkpoint.save(path / STATE, {"weights": [1.0]})
    with begin(path, resume=True) as folder, pytest.raises(RequestError, match="not one of this version"):
        folder.load_state()


def test_a_dead_owner_does_not_hold_a_folder(tmp_path: Path) -> None:
    """What a killed process left behind locks nobody out."""
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


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A run is not written over a file, nor below one."""
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "run"):
        with pytest.raises(RequestError, match="--out") as caught, begin(path):
            pass
        assert "\n" not in str(caught.value)
    assert file.read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing rights are the request's fault, and no folder stays."""

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("acq.runs.folder.write_text", refuse)
    with pytest.raises(RequestError, match="cannot be written: Permission denied"), begin(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing write leaves the old file."""
    path = tmp_path / "file.json"
    write_text(path, "old")

    def fail(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text(path, "new")
    assert path.read_text() == "old"
