from __future__ import annotations

from pathlib import Path

import pytest
from report.made_run import add_latencies, make_run

from acq.errors import RequestError
from acq.report.run_files import damage_reported, read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_all_files_are_read(folder: Path) -> None:
    """Latencies only where they were measured."""
    files = read_run(folder)
    assert (files.summary["bits"], files.settings["preset"], files.diagnostics["images"]) == ("w4a4", "fast", 256)
    assert len(files.records) == 12
    assert files.latencies == []
    add_latencies(folder)
    assert [(row["threads"], row["batch"]) for row in read_run(folder).latencies] == [(1, 1), (1, 32), (2, 1), (2, 32)]


@pytest.mark.parametrize("name", ["diagnostics.json", "metrics.jsonl", "config.yaml"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RequestError, match=rf"there is no .*{name}; quantize again"):
        read_run(folder)


def test_a_run_that_is_not_finished_is_named(folder: Path) -> None:
    """Its summary is written last."""
    (folder / "summary.json").unlink()
    with pytest.raises(RequestError, match="there is no finished run in"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", '{"top1": {}}'),
        ("diagnostics.json", "[1]"),
        ("diagnostics.json", "[" * 10**5),
        ("diagnostics.json", "\xff"),
        ("metrics.jsonl", "no JSON"),
        ("metrics.jsonl", "3"),
        ("config.yaml", "config: [1"),
        ("config.yaml", "config: &a [*a]"),
        ("config.yaml", "other: {}"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str) -> None:
    """In one line."""
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(RequestError, match=rf"{name} is damaged") as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"latencies": [{}]}', "null"])
def test_damaged_latencies_are_named_with_what_makes_them(folder: Path, content: str) -> None:
    """The run itself is whole."""
    (folder / "latency.json").write_text(content)
    with pytest.raises(RequestError, match=r"latency\.json is damaged .*; run acq benchmark again"):
        read_run(folder)


def test_a_request_error_stays_as_it_is(tmp_path: Path) -> None:
    """It already says which file is meant."""
    with pytest.raises(RequestError, match=r"^precise$"), damage_reported(tmp_path):
        raise RequestError("precise")
