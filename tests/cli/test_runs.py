from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from commands import acq, contents, refusal


@pytest.fixture
def two(run: Path) -> list[str]:
    """Two finished runs whose bits differ."""
    shutil.copytree(run, "other")
    summary = json.loads(Path("other/summary.json").read_text())
    Path("other/summary.json").write_text(json.dumps(summary | {"bits": "w8a8"}))
    return ["run", "other"]


def test_an_exported_file_gives_the_students_answers(run: Path) -> None:
    """The file lies in the run folder, is compared with the student, and has its accuracy."""
    student = acq("evaluate", "run", "--data", "data.npz", "--json").json()["top1"]
    for option in ([], ["--raw-images"]):
        made = acq("export", "run", *option, "--json").json()
        assert made["file"] == "run/model.onnx"
        assert made["bytes"] == (run / "model.onnx").stat().st_size
        for match in (made["optimised"], made["plain"]):
            assert (match["agreement"], match["equal"]) == (100.0, 100.0)
            assert match["difference"] < 1e-5
        assert acq("evaluate", "run/model.onnx", "--data", "data.npz", "--json").json()["top1"] == student


def test_an_export_says_what_each_engine_makes_of_the_file(run: Path) -> None:
    """One line has the file, and one per engine the comparison and how many layers run in integers."""
    file, *engines = acq("export", "run", "--out", "other.onnx", "--engines", "openvino").text().splitlines()
    assert re.fullmatch(r"file         other\.onnx, \d+ kB    time \d+ s", file)
    for name, line in zip(("onnxruntime", "openvino"), engines, strict=True):
        assert re.fullmatch(
            rf"{name} +decides like the student on 100\.0 % of 32 images \(largest difference \S+\), "
            r"(\d+) of \1 layers in integers",
            line,
        )
    assert Path("other.onnx").exists()


def test_an_unknown_engine_is_refused(run: Path) -> None:
    """The message has the nearest name, and no file is written."""
    (run / "model.onnx").unlink()
    assert "did you mean 'openvino'?" in refusal("export", "run", "--engines", "openvin")
    assert not (run / "model.onnx").exists()


def test_the_comparison_is_in_json(run: Path) -> None:
    """It has the figures of each engine."""
    found = acq("export", "run", "--json").json()
    assert set(found["engines"]) == {"onnxruntime", "openvino"}
    assert found["openvino"] == found["engines"]["openvino"]
    assert found["integer"] == found["layers"] == found["engines"]["onnxruntime"]["layers"]


def test_a_benchmark_is_printed_and_kept(run: Path) -> None:
    """Sizes and a latency per threads and batch are printed, and kept for the report."""
    measured = acq("benchmark", "run", "--seconds", "0", "--json").json()
    assert measured["integer_bytes"] == (run / "model.onnx").stat().st_size
    assert [(row["threads"], row["batch"]) for row in measured["latencies"]] == [(1, 1), (1, 32), (2, 1), (2, 32)]
    kept = json.loads((run / "latency.json").read_text())
    assert kept.keys() == measured.keys()
    lines = acq("benchmark", "run", "--seconds", "0").text().splitlines()
    assert lines[0].split()[:2] == ["float", "bytes"]
    assert lines[-5].split("  ")[0] == "threads"
    assert [line.split()[:2] for line in lines[-4:]] == [["1", "1"], ["1", "32"], ["2", "1"], ["2", "32"]]


def test_a_report_shows_latencies_that_were_measured(run: Path) -> None:
    """A report that is made after a benchmark has its latencies."""
    assert "Latency" not in (run / "report.html").read_text()
    assert acq("benchmark", "run", "--seconds", "0").code == 0
    assert acq("report", "run").text()
    assert "Latency" in html.unescape((run / "report.html").read_text())


def test_an_export_discards_latencies_of_the_earlier_file(run: Path) -> None:
    """A file in another place leaves the run's own latencies."""
    (run / "latency.json").write_text("{}")
    assert acq("export", "run", "--out", "other.onnx").code == 0
    assert (run / "latency.json").exists()
    assert acq("export", "run").code == 0
    assert not (run / "latency.json").exists()


def test_a_report_is_made_again_from_the_folder_alone(run: Path) -> None:
    """The page of a finished run differs in nothing from the one that the run ended with."""
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert acq("report", "run", "--json").json() == {"report": "run/report.html"}
    assert (run / "report.html").read_text() == page
    assert acq("report", "run").text() == "run/report.html\n"


def test_a_report_repeats_the_command_of_the_run(run: Path) -> None:
    """The page gives the command with the settings that differ from the preset."""
    page = html.unescape((run / "report.html").read_text())
    for words in ("acq quantize tinynet:network", "--input-size 3,16,16", "--set generator.steps=2", "--out run"):
        assert words in page


def test_runs_are_compared_on_standard_output(two: list[str]) -> None:
    """The table has a column per run, and figures that differ come first."""
    title, first, *rest = acq("compare", *two).text().splitlines()
    assert title.split() == two
    assert first.split() == ["bits", "w4a4", "w8a8"]
    assert ["seed", "0", "0"] in [line.split() for line in rest]


def test_runs_are_compared_in_json_and_on_a_page(two: list[str]) -> None:
    """The same figures are given as one object, and as a page where one is wanted."""
    answer = acq("compare", *two, "--json", "--html", "both.html").json()
    assert answer["runs"] == two
    assert next(iter(answer["figures"].items())) == ("bits", ["w4a4", "w8a8"])
    assert "w8a8" in Path("both.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "none"], "there is no run folder none; give a folder that acq quantize wrote"),
        (["export", "empty"], "there is no finished run in empty"),
        (["export", "run", "--out", "model.py"], "model.py"),
        (["export", "run", "--out", "data.npz/model.onnx"], "data.npz/model.onnx"),
        (["benchmark", "none"], "there is no run folder none"),
        (["report", "none"], "there is no run folder none"),
        (["report", "empty"], "there is no finished run in empty"),
        (["compare", "run"], "give at least two run folders"),
        (["compare", "run", "none"], "there is no run folder none"),
        (["compare", "run", "run", "--html", "page.py"], "does not end in .html"),
        (["compare", "run", "run", "--html", "none/both.html"], "none/both.html cannot be written"),
    ],
)
def test_what_cannot_be_done_with_a_run_is_refused(run: Path, arguments: list[str], words: str) -> None:
    """One line names the folder or file, and nothing is written."""
    Path("empty").mkdir()
    assert words in refusal(*arguments)


def test_a_missing_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra of a command, the command says what to install."""
    before = contents(run)
    monkeypatch.setitem(sys.modules, "acq.report.page", None)
    assert "pip install 'acquant[report]'" in refusal("report", "run")
    monkeypatch.setitem(sys.modules, "acq.report.comparison", None)
    assert "pip install 'acquant[report]'" in refusal("compare", "run", "run")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'acquant[onnx]'" in refusal("export", "run")
    assert contents(run) == before
