from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import NETWORK, SIZE, SMALL, Answer, acq, contents, quantize, refusal, weights

from acq.cli.quantize import finished_lines
from acq.core.processes import Processes
from acq.runs.folder import claim

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_json_is_all_there_is_on_standard_output(quantized: tuple[Path, Answer]) -> None:
    """A run prints its summary as one object; progress goes to standard error."""
    run, answer = quantized
    figures = answer.json()
    engines = {"onnxruntime", "openvino"}
    assert set(figures["engines"]) == engines
    size = (run / "model.onnx").stat().st_size
    places = {"run": "run", "report": "run/report.html", "file": "run/model.onnx", "file_bytes": size}
    places["engines"] = figures["engines"]
    assert figures == json.loads((run / "summary.json").read_text()) | places
    assert "train the generator" in answer.err
    assert "building" in answer.err  # printed by the network itself


def test_a_finished_run_that_is_resumed_names_its_file(run: Path) -> None:
    """It was compared when it was written."""
    again = acq(*quantize("--resume", "--json", export=True)).json()
    assert (again["file"], again["file_bytes"]) == ("run/model.onnx", (run / "model.onnx").stat().st_size)
    assert again["engines"] is None


def test_a_run_ends_with_four_lines(folder: Path) -> None:
    """Quality, the expected loss, cost and the next command are on standard output; progress of each phase is not."""
    answer = acq(*quantize())
    quality, expected, cost, then = answer.out.splitlines()
    number = r"-?\d+\.\d"
    line = rf"expected   {number} points of top-1 lost on real images \({number} to {number} in 9 of 10 runs\)"
    assert re.fullmatch(line, expected)
    assert re.fullmatch(
        r"agreement  w4a4 student and float network agree on [\d.]+ % of augmented synthetic images",
        quality,
    )
    assert re.fullmatch(r"size +1 kB  ->  0 kB of weights and scales    time \d+:\d\d min", cost)
    assert then == "next       acq export run    (report: run/report.html)"
    for line in ("4/7 refine images: 4/4", "6/7 train the student: 2/2", "7/7 convert to integers: 1/1"):
        assert line in answer.err


def test_the_first_line_is_accuracy_where_it_is_known() -> None:
    """With labelled images the line has both accuracies, their difference and the number of images."""
    figures = {
        "output": {"kind": "class", "size": 5},
        "bits": "w4a4", "top1": 90.9, "teacher_top1": 91.8, "test_images": 1000, "agreement": 97.0,
        "float_bytes": 1_076_136, "quantized_bytes": 142_208, "seconds": 90.2, "run": "runs/first", "report": None,
        "file": None,
    }  # fmt: skip
    assert finished_lines(figures) == [
        "top-1      float 91.80 %  ->  w4a4 90.90 %  (-0.90, 1,000 test images)",
        "size       1,076 kB  ->  142 kB of weights and scales    time 1:30 min",
        "next       acq export runs/first",
    ]
    with_file = figures | {"file": "runs/first/model.onnx", "file_bytes": 157_000}
    assert finished_lines(with_file)[2] == "file       runs/first/model.onnx, 157 kB"
    stopped = figures | {"stopped": {"phase": "few", "step": 40, "reason": "nothing is to be gained"}}
    line = "stopped    after a few finished images: nothing is to be gained"
    quality, *others = finished_lines(figures)
    assert finished_lines(stopped) == [quality, line, *others]
    judged = stopped | {"expected_loss": {"points": 0.42, "low": -0.28, "high": 1.66}}
    expected = "expected   0.4 points of top-1 lost on real images (-0.3 to 1.7 in 9 of 10 runs)"
    assert finished_lines(judged) == [quality, expected, line, *others]


def test_the_first_lines_have_the_interval_of_the_change_and_top5() -> None:
    """Where images that changed were counted, and where there are at least 11 classes."""
    figures = {
        "output": {"kind": "class", "size": 20},
        "bits": "w4a4", "top1": 90.9, "teacher_top1": 91.8, "top5": 99.1, "teacher_top5": 99.3, "test_images": 1000,
        "images_lost": 12, "images_gained": 3, "float_bytes": 1_076_136, "quantized_bytes": 142_208, "seconds": 90.2,
        "run": "runs/first", "report": None, "file": None,
    }  # fmt: skip
    assert finished_lines(figures)[:2] == [
        "top-1      float 91.80 %  ->  w4a4 90.90 %  (-0.90 ± 0.76, 1,000 test images)",
        "top-5      float 99.30 %  ->  w4a4 99.10 %",
    ]


def test_quiet_prints_nothing_but_results_in_json(folder: Path) -> None:
    """``--quiet`` leaves out progress, notes and lines; ``--json`` still has its object, and errors are told."""
    answer = acq(*quantize("--quiet", network=["tinynet:network", *SIZE]))  # no --mean, of which a note tells
    assert (answer.code, answer.out, answer.notes) == (0, "", [])
    again = acq(*quantize("--quiet", "--resume", "--json", network=["tinynet:network", *SIZE]))
    assert again.json()["run"] == "run"
    assert again.notes == []
    assert refusal(*quantize("-q"))


def test_verbose_prints_losses_line_by_line(folder: Path) -> None:
    """Every step that reports losses has a line."""
    lines = acq(*quantize("--verbose", "--set", "generator.steps=25")).notes
    steps = [line.split(": ")[1].split(" ")[0] for line in lines if "train the generator" in line]
    assert steps == ["10/25", "20/25", "25/25"]


def test_the_default_folder_is_numbered(folder: Path) -> None:
    """Without ``--out`` each run of one network goes to a folder of its own below ``runs``."""
    words = [word for word in quantize("-q", "--json") if word not in ("--out", "run")]
    assert acq(*words, "--dry-run").json()["run"] == "runs/tinynet-network-w4a4"
    (folder / "runs" / "tinynet-network-w4a4").mkdir(parents=True)
    assert acq(*words).json()["run"] == "runs/tinynet-network-w4a4-2"
    assert acq("evaluate", "runs/tinynet-network-w4a4-2", "--data", "data.npz").text()


def test_options_reach_the_run(folder: Path) -> None:
    """Options and settings are in ``config.yaml`` as they were given, and act on the student."""
    options = ["--bits", "w8a8", "--first-last-bits", "same", "--exclude", "3", "--seed", "5", "--preset", "fast"]
    figures = acq(*quantize(*options, "--json")).json()
    assert (figures["bits"], figures["first_last_bits"], figures["seed"]) == ("w8a8", "same", 5)
    assert figures["float_operators"] > 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())["config"]
    assert (stored["preset"], stored["layers"]) == ("fast", {"3": "float"})
    assert [stored["generator"]["steps"], stored["calibration"]["images"]] == [2, 8]


def test_a_network_of_ones_own_goes_through(folder: Path) -> None:
    """A callable in the current folder with arguments and a nested checkpoint is quantized with those weights."""
    state = {f"module.{name}": value for name, value in weights(width=6).items()}
    torch.save({"student": state, "teacher": {name: value * 2 for name, value in state.items()}}, "wide.pt")
    own = ["--checkpoint", "wide.pt", "--checkpoint-key", "student", "--model-args", '{"width": 6}']
    figures = acq(*quantize(*own, "--data", "data.npz", "--json")).json()
    assert figures["model"] == "tinynet:network"
    teacher = acq("evaluate", *NETWORK, *own, "--data", "data.npz", "--json").json()
    student = acq("evaluate", "run", "--data", "data.npz", "--json").json()
    assert (teacher["top1"], teacher["test_images"]) == (figures["teacher_top1"], 10)
    assert student["top1"] == figures["top1"]
    origin = yaml.safe_load(Path("run/config.yaml").read_text())["origin"]
    assert origin == {
        "model": "tinynet:network", "checkpoint": "wide.pt", "checkpoint_key": "student", "arguments": {"width": 6},
    }  # fmt: skip


def test_a_used_folder_is_not_used_again(run: Path) -> None:
    """Without an option it is refused; ``--resume`` returns the finished run, ``--overwrite`` makes another."""
    assert "error: run already holds a run" in refusal(*quantize())
    again = acq(*quantize("--resume", "--json")).json()
    assert again["seconds"] == json.loads((run / "summary.json").read_text())["seconds"]
    assert "another config.seed" in refusal(*quantize("--resume", "--seed", "3"))
    assert acq(*quantize("--overwrite", "--seed", "3", "--json")).json()["seed"] == 3


def test_a_folder_in_use_is_not_used(folder: Path) -> None:
    """Who holds the folder is named."""
    settings = {key: {} for key in ("origin", "teacher", "preprocessing", "config")}
    with claim(folder / "run", settings, resume=False, overwrite=False):
        line = refusal(*quantize("--overwrite"))
    assert line.startswith(f"error: the run folder run is in use by process {os.getpid()}")


def test_a_run_without_the_report_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a note says what to install, and no page is named."""
    monkeypatch.setitem(sys.modules, "acq.report.page", None)
    answer = acq(*quantize("--json"))
    assert answer.json()["report"] is None
    assert "note: no report: the report needs acq.report.page; " in answer.err
    assert "pip install 'acquant[report]'" in answer.err


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    """The plan, the settings and the time are printed as text or JSON, and no folder is made."""
    before = contents(folder)
    out = acq(*quantize("--dry-run", "--preset", "fast")).text()
    assert "node" in out.splitlines()[0]
    assert "preset: fast" in out
    assert re.search(r"^steps: generator 2, images 4, student 2, on cpu$", out, re.MULTILINE)
    assert re.search(
        r"^time: about \d+:\d\d min \(first \d+ s, generator \d+ s, images \d+ s, calibration ", out, re.MULTILINE
    )
    assert out.splitlines()[-1] == "would write run; nothing was written"
    described = acq(*quantize("--dry-run", "--json", "--seed", "5")).json()
    assert described.keys() == {"run", "config", "output", "plan", "seconds"}
    assert described["config"]["seed"] == 5
    assert described["plan"][0]["role"] == "image"
    assert list(described["seconds"]) == ["first", "generator", "images", "calibration", "student", "conversion"]
    assert contents(folder) == before


def test_a_process_that_is_not_the_main_one_needs_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine the run to resume is not there, and only the main process prints and writes."""
    second = Processes(1, 2)
    seen: list[Any] = []

    def recipe(request: Any, session: Any, data: Any) -> Any:
        seen.append(session.processes)
        return type("Result", (), {"summary": {}})

    monkeypatch.setattr("acq.cli.quantize.started_by_torchrun", lambda: second)
    monkeypatch.setattr("acq.cli.quantize.joined", lambda _: nullcontext(second))
    monkeypatch.setattr("acq.cli.quantize.run_recipe", recipe)
    before = contents(folder)
    answer = acq(*quantize("--resume"))
    assert (answer.code, answer.out, answer.notes) == (0, "", [])
    assert seen == [second]
    assert contents(folder) == before


def test_ctrl_c_saves_and_resume_continues(folder: Path) -> None:
    """``python -m acq`` ends with code 130 and one line, and resumed it makes the bytes of a whole run."""
    arguments = quantize(small=[*SMALL, "generator.steps=80"])
    command = [sys.executable, "-m", "acq", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        metrics = folder / "run" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.match(r"stopped at \w+ step \d+ of \d+; .* continue with --resume", err.splitlines()[-1])
    assert (folder / "run" / "checkpoint" / "state.pt").exists()
    resumed, whole = acq(*arguments, "--resume"), acq(*arguments, "--out", "whole")
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    for name in ("student.safetensors", "quantization.json"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps[:8] == [10 * (i + 1) for i in range(8)]


def test_torchrun_starts_several_processes_for_one_run(folder: Path) -> None:
    """Two processes make one run: one object on standard output, one folder, one line per record."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*launch, "-m", "acq", *quantize("--json")], env=ENVIRONMENT, start_new_session=True, **pipes
    ) as process:
        try:
            out, err = process.communicate(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    objects = [line for line in out.splitlines() if line.startswith("{")]
    assert len(objects) == 1
    assert json.loads(objects[0])["steps"] == {"generator": 2, "images": 4, "student": 2}
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("generator", 2), ("images", 4), ("student", 2)]
    assert acq("evaluate", "run", "--data", "data.npz").text()
