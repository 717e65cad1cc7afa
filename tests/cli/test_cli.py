from __future__ import annotations

import html
import importlib.metadata
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_recipe import quick
from torch import nn

from acq import cli
from acq.core.processes import Processes
from acq.runs.folder import claim

CODE = """
import torch
from torch import nn

def layers(width, *rest):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *rest)

def head(width, classes=5):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)

def network(width=4):
    print("building")
    torch.manual_seed(0)
    return layers(width, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), *head(width))

def without_norms():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head(4))

def without_space():
    return nn.Sequential(nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))

def without_scores():
    return layers(4)

def of_one_size():
    return layers(4, nn.Flatten(), nn.Linear(4 * 8 * 8, 5))

class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
    def forward(self, x):
        return self.inner(x if x.sum() > 0 else -x)
"""
SMALL = [
    "generator.steps=2", "generator.batch=4", "generator.noise_dim=4", "generator.width=8",
    "images.count=16", "images.batch=10", "images.steps=2",
    "student.steps=2", "student.batch=4", "student.calibration_images=8",
    "student.learning_rate=0.001", "student.scale_learning_rate=0.0003",
]  # fmt: skip
SIZE = ["--input-size", "3,16,16"]
NETWORK = ["tinynet:network", *SIZE, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]
CONTRACT = {
    "model", "bits", "placement", "ends", "preset", "seed", "device", "seconds", "peak_memory_mb", "steps",
    "teacher_top1", "top1", "agreement", "attention", "float_bytes", "quantized_bytes",
}  # fmt: skip


def quantize(*arguments: str, network: list[str] = NETWORK, small: list[str] = SMALL) -> list[str]:
    """A small run into the folder ``run``; ``arguments`` come last, so they count."""
    settings = [word for setting in small for word in ("--set", setting)]
    return ["quantize", *network, "--device", "cpu", "--out", "run", *settings, *arguments]


def of(model: str, *more: str) -> list[str]:
    return [f"tinynet:{model}", *SIZE, *NETWORK[3:], *more]


class Answer:
    """What a command left behind: its exit code and what it wrote to either stream."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.code == 0, self.err
        assert len(self.out.splitlines()) == 1
        value = json.loads(self.out, parse_constant=pytest.fail)
        assert isinstance(value, dict)
        return value


Acq = Callable[..., Answer]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a network of the user's, its weights and labelled images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    quick(monkeypatch)
    (tmp_path / "tinynet.py").write_text(CODE)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10, 16, 16, 3), np.uint8), np.arange(10) % 5
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    yield tmp_path
    sys.modules.pop("tinynet", None)


@pytest.fixture
def acq(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Acq:
    """Run the command in this process: arguments in, answer out."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["acq", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, said.out, said.err)

    return run


def weights(width: int = 4) -> dict[str, torch.Tensor]:
    """A state dict that fits ``tinynet:network`` of a width."""
    space: dict[str, Any] = {}
    exec(CODE, space)
    network = space["network"](width)
    assert isinstance(network, nn.Module)
    return network.state_dict()


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


WRONG: dict[str, tuple[list[str], str]] = {
    "no such command": (["quantise"], "quantise"),
    "no model": (["quantize", "--out", "run"], "MODEL"),
    "no folder": (["quantize", *NETWORK], "--out"),
    "an unknown option": (quantize("--bitz", "w4a4"), "--bitz"),
    "an option without its value": (quantize("--seed"), "--seed"),
    "two models": (quantize("resnet20-cifar10"), "resnet20-cifar10"),
    "an unknown model": (quantize(network=["resnet20-cifr10"]), "did you mean 'resnet20-cifar10'?"),
    "an unknown module": (quantize(network=["tinynt:network", *SIZE]), "did you mean 'tinynet'?"),
    "an unknown callable": (quantize(network=["tinynet:netwrk", *SIZE]), "did you mean 'network'?"),
    "a library's unknown model": (quantize(network=["torchvision:", *SIZE]), "torchvision"),
    "no input size": (quantize(network=["tinynet:network"]), "--input-size"),
    "half an input size": (quantize("--input-size", "3,16"), "--input-size"),
    "an input size in words": (quantize("--input-size", "3,big,16"), "--input-size"),
    "another input size": (quantize("--input-size", "3,20,20", network=of("of_one_size")), "3x20x20"),
    "another number of channels": (
        quantize("--input-size", "1,16,16", "--mean", "0.5", "--std", "0.5"), "does not take images of 1x16x16"
    ),
    "a mean without deviation": (quantize(network=[*NETWORK[:3], "--mean", "0.5,0.5,0.5"]), "--std"),
    "two means": (quantize("--mean", "0.5,0.5"), "--mean"),
    "a mean in bytes": (quantize("--mean", "128,128,128"), "divide"),
    "no deviation": (quantize("--std", "0,0.5,0.5"), "--std"),
    "arguments that are no JSON": (quantize("--model-args", "width=3"), "--model-args"),
    "arguments that are no object": (quantize("--model-args", "[3]"), "--model-args"),
    "an unknown argument": (quantize("--model-args", '{"widht": 3}'), "did you mean 'width'?"),
    "a missing checkpoint": (quantize("--checkpoint", "none.pt"), "none.pt"),
    "a checkpoint of another network": (quantize("--checkpoint", "wide.pt"), "does not fit"),
    "a pickle of something else": (quantize("--checkpoint", "trap.pth"), "no code in it is run"),
    "a damaged checkpoint": (quantize("--checkpoint", "damaged.safetensors"), "damaged.safetensors"),
    "a network without batch norms": (quantize(network=of("without_norms")), "BatchNorm2d"),
    "a network without feature maps": (quantize(network=of("without_space")), "spatial features"),
    "a network without scores": (quantize(network=of("without_scores")), "no classifier output"),
    "a network with two paths": (quantize(network=of("Undecided")), "must not depend on the values"),
    "one bit": (quantize("--bits", "w1a4"), "bits out of range"),
    "nine bits": (quantize("--bits", "w4a9"), "bits out of range"),
    "bits in words": (quantize("--bits", "four"), "w4a4"),
    "ends out of range": (quantize("--ends", "9"), "bits out of range"),
    "ends in words": (quantize("--ends", "all"), "ends"),
    "addends out of range": (quantize("--addends", "1"), "bits out of range: addend 1"),
    "an unknown placement": (quantize("--placement", "everywhere"), "'deployable' or 'relu-only'"),
    "an unknown preset": (quantize("--preset", "fats"), "did you mean 'fast'?"),
    "an unknown device": (quantize("--device", "tpu"), "'cpu'"),
    "a negative seed": (quantize("--seed", "-1"), "seed"),
    "a seed in words": (quantize("--seed", "one"), "--seed"),
    "an unknown setting": (quantize("--set", "student.step=3"), "did you mean 'steps'?"),
    "a setting of a section that is no more": (quantize("--set", "pool.size=16"), "'pool' is not known"),
    "a setting without value": (quantize("--set", "student.steps"), "key=value"),
    "a setting out of range": (quantize("--set", "generator.batch=3"), "generator.batch"),
    "an unknown setting in a file": (quantize("--config", "wrong.yaml"), "did you mean 'generator'?"),
    "a missing configuration": (quantize("--config", "none.yaml"), "none.yaml"),
    "a configuration of words": (quantize("--config", "tinynet.py"), "tinynet.py"),
    "nothing to resume": (quantize("--resume"), "no run in run"),
    "resuming and overwriting": (quantize("--resume", "--overwrite"), "contradict"),
    "quiet and verbose": (quantize("--quiet", "--verbose"), "contradict"),
    "a budget without auto": (quantize("--budget", "3"), "give bits auto, not w4a4"),
    "a folder of other files": (quantize("--out", "."), "holds other files"),
    "a file for a folder": (quantize("--out", "data.npz"), "is a file"),
    "a folder below a file": (quantize("--out", "data.npz/run"), "--out"),
    "no data": (quantize("--data", "none.npz"), "no data at none.npz"),
    "data of another kind": (quantize("--data", "tinynet.py"), "tinynet.py"),
    "labels out of range": (quantize("--data", "labels.npz"), "labels in labels.npz go from 0 to 9"),
    "images of another size": (quantize("--data", "large.npz"), "[N, 16, 16, 3]"),
    "image files of another size": (quantize("--data", "pictures"), "resize it"),
    "more folders than classes": (quantize("--data", "many"), "5 classes"),
    "a sample that there is not": (quantize("--data", "sample"), "no sample"),
    "nothing to evaluate on": (["evaluate", *NETWORK], "--data"),
    "no images to evaluate on": (["evaluate", *NETWORK, "--data", "data.npz", "--limit", "0"], "--limit"),
    "a folder without a run": (["evaluate", "pictures", "--data", "data.npz"], "no quantized student"),
    "an unknown target": (["evaluate", "resnet02-cifar10", "--data", "sample"], "did you mean 'resnet20-cifar10'?"),
    "an unknown device to evaluate on": (
        ["evaluate", *NETWORK, "--data", "data.npz", "--device", "tpu"], "device 'tpu' is not known"
    ),
    "a run that has sizes": (["evaluate", "pictures", *SIZE, "--data", "data.npz"], "is a run folder"),
    "a missing onnx file": (["evaluate", "model.onnx", "--data", "data.npz"], "acq export RUN writes one"),
    "an onnx file that has sizes": (["evaluate", "model.onnx", *SIZE, "--data", "data.npz"], "is an ONNX file"),
    "an export of nothing": (["export", "pictures"], "no quantized student"),
    "an export to another kind of file": (["export", "pictures", "--out", "tinynet.py"], "no quantized student"),
    "a page of another kind of file": (["compare", "a", "b", "--html", "tinynet.py"], "ends in .html"),
    "no module before the callable": (quantize(network=[":network", *SIZE]), "names no module"),
    "fewer addends than activations": (quantize("--bits", "w4a8", "--addends", "4"), "fewer than the activations' 8"),
    "an infinite rate": (quantize("--set", "student.learning_rate=.inf"), "finite"),
    "a dry run of nothing to resume": (quantize("--dry-run", "--resume"), "no run in run"),
    "a dry run without its data": (quantize("--dry-run", "--data", "none.npz"), "no data at none.npz"),
    "a dry run into a file": (quantize("--dry-run", "--out", "data.npz"), "is a file"),
    "a wrong plan": (["inspect", *NETWORK, "--bits", "w44"], "w4a4"),
}  # fmt: skip


@pytest.fixture
def traps(folder: Path) -> Path:
    """Files with which something is wrong."""
    torch.save(weights(width=6), folder / "wide.pt")
    (folder / "trap.pth").write_bytes(pickle.dumps({"weight": Trap()}))
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "wrong.yaml").write_text("generatr:\n  steps: 3\n")
    images = np.zeros((10, 16, 16, 3), np.uint8)
    np.savez(folder / "labels.npz", images=images, labels=np.arange(10))
    np.savez(folder / "large.npz", images=np.zeros((5, 32, 32, 3), np.uint8), labels=np.arange(5))
    for index in range(7):
        (folder / "many" / f"class{index}").mkdir(parents=True)
    for index in range(5):
        (folder / "pictures" / f"{index}").mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(folder / "pictures" / f"{index}" / "a.png")
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_in_a_line(acq: Acq, traps: Path, name: str) -> None:
    """Exit code 2, one ``error:`` line that names the thing, nothing on standard output, nothing written."""
    arguments, words = WRONG[name]
    before = files(traps)
    answer = acq(*arguments)
    lines = [line for line in answer.err.splitlines() if line != "building"]
    assert answer.code == 2
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert answer.out == ""
    assert files(traps) == before


def test_a_run_is_exported_and_the_file_evaluated(acq: Acq, folder: Path) -> None:
    """The file lies in the run folder, is as right as the student, and says so in JSON where asked."""
    assert acq(*quantize("--bits", "w4a4")).code == 0
    for option in ([], ["--raw-images"]):
        made = json.loads(acq("export", "run", *option, "--json").out)
        assert made["file"] == "run/model.onnx"
        assert made["bytes"] == (folder / "run" / "model.onnx").stat().st_size
        for match in (made["optimised"], made["plain"]):
            assert (match["agreement"], match["equal"]) == (100.0, 100.0)
            assert match["difference"] < 1e-5
        ours, theirs = (
            json.loads(acq("evaluate", target, "--data", "data.npz", "--json").out)
            for target in ("run", "run/model.onnx")
        )
        assert ours["top1"] == theirs["top1"]
    measured = json.loads(acq("benchmark", "run", "--seconds", "0", "--json").out)
    assert measured["integer_bytes"] == made["bytes"]
    assert [(row["threads"], row["batch"]) for row in measured["latencies"]] == [(1, 1), (1, 32), (2, 1), (2, 32)]
    assert json.loads((folder / "run" / "latency.json").read_text()).keys() == measured.keys()
    assert "ratio" in acq("benchmark", "run", "--seconds", "0").err
    assert acq("report", "run").code == 0
    assert "of floating point's latency" in html.unescape((folder / "run" / "report.html").read_text())
    assert "100" in acq("export", "run", "--out", "other.onnx").err
    assert (folder / "other.onnx").exists()


def test_every_run_ends_with_a_report(acq: Acq, folder: Path) -> None:
    """Which can be written again from the folder alone, and differs in nothing."""
    assert acq(*quantize("--bits", "w4a4")).code == 0
    page = (folder / "run" / "report.html").read_text()
    (folder / "run" / "report.html").unlink()
    assert json.loads(acq("report", "run", "--json").out) == {"report": "run/report.html"}
    assert (folder / "run" / "report.html").read_text() == page


def test_runs_are_compared(acq: Acq, folder: Path) -> None:
    """On the terminal, as JSON, and as a page; one alone is an error."""
    for name, bits in (("one", "w4a4"), ("two", "w8a8")):
        assert acq(*quantize("--bits", bits, "--out", name)).code == 0
    assert "w8a8" in acq("compare", "one", "two", "--html", "both.html").err
    assert "w8a8" in (folder / "both.html").read_text()
    answer = acq("compare", "one", "two", "--json").json()
    assert answer["figures"]["bits"] == ["w4a4", "w8a8"]
    assert acq("compare", "one").code == 2
    assert acq("compare", "one", "two", "--html", "none/both.html").code == 2


def test_a_run_without_the_extra_says_so(acq: Acq, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is finished all the same; asked for by itself, a report that cannot be made is an error."""
    monkeypatch.setitem(sys.modules, "acq.report.page", None)
    answer = acq(*quantize("--bits", "w4a4", "--json"))
    assert answer.code == 0
    assert answer.json()["report"] is None
    assert "note: no report" in answer.err
    assert "pip install 'acq[report]'" in " ".join(answer.err.split())
    assert acq("report", "run").code == 2


def test_a_folder_that_was_used_is_not_used_again(acq: Acq, folder: Path) -> None:
    """Without a word about it; ``--resume`` returns a finished run, ``--overwrite`` makes it anew."""
    assert acq(*quantize()).code == 0
    before = files(folder)
    answer = acq(*quantize())
    assert answer.code == 2
    assert "error: run already holds a run" in answer.err
    assert files(folder) == before
    again = acq(*quantize("--resume", "--json")).json()
    assert again["seconds"] == json.loads((folder / "run" / "summary.json").read_text())["seconds"]
    answer = acq(*quantize("--resume", "--seed", "3"))
    assert answer.code == 2
    assert "another config.seed" in answer.err
    assert acq(*quantize("--overwrite", "--seed", "3", "--json")).json()["seed"] == 3


def test_a_folder_in_use_is_not_used(acq: Acq, folder: Path) -> None:
    """Whoever holds it is named."""
    settings = {key: {} for key in ("origin", "teacher", "preprocessing", "config")}
    with claim(folder / "run", settings, resume=False, overwrite=False):
        answer = acq(*quantize("--overwrite"))
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(f"error: the run folder run is in use by process {os.getpid()}")


def test_a_process_that_does_not_lead_needs_no_folder(acq: Acq, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine the run to resume is not there."""
    followed: list[Processes] = []
    monkeypatch.setattr(cli, "joined", lambda _: nullcontext(Processes(1, 2)))
    monkeypatch.setattr(cli, "follow", lambda _, team: followed.append(team))
    assert acq(*quantize("--resume")).code == 0
    assert followed == [Processes(1, 2)]


def test_json_is_all_there_is_on_stdout(acq: Acq, folder: Path) -> None:
    """A run prints one object with every name of the contract; progress goes to the other stream."""
    answer = acq(*quantize("--data", "data.npz", "--json"))
    figures = answer.json()
    assert figures.keys() >= CONTRACT | {"run"}
    assert figures["attention"].keys() >= {"correlation", "spread", "eval_train_similarity"}
    places = {"run": "run", "report": "run/report.html"}
    assert figures == json.loads((folder / "run" / "summary.json").read_text()) | places
    assert "train the generator" in answer.err
    assert "building" in answer.err
    for arguments in (
        ["evaluate", "run", "--data", "data.npz"],
        ["evaluate", *NETWORK, "--data", "data.npz"],
        ["inspect", *NETWORK],
        ["models"],
        quantize("--dry-run", "--overwrite"),
    ):
        assert acq(*arguments, "--json").json()


def test_text_goes_to_the_terminal(acq: Acq) -> None:
    """Without ``--json`` a run says its figures where people read, and leaves standard output empty."""
    answer = acq(*quantize())
    assert answer.code == 0
    assert answer.out == ""
    for words in ("agreement", "quantized_bytes", "2/5 finish images: 4/4", "4/5 train the student: 2/2"):
        assert words in answer.err


def test_quiet_prints_nothing(acq: Acq) -> None:
    """But errors; --json still has its object."""
    answer = acq(*quantize("--quiet", network=["tinynet:network", *SIZE]))  # no --mean, of which a note tells
    assert (answer.code, answer.out, answer.err.replace("building\n", "")) == (0, "", "")
    assert acq(*quantize("--quiet", "--overwrite", "--json")).json()["run"] == "run"
    assert acq(*quantize("-q")).err.splitlines()[-1].startswith("error: ")


def test_a_run_ends_with_a_line(acq: Acq) -> None:
    """Where it is, how large and how long it took; --verbose has every loss line by line."""
    *_, last = acq(*quantize("--verbose")).err.splitlines()
    assert re.fullmatch(r"run: w4a4 student, \d+ kB of weights and scales, \d+ s", last)
    *_, last = acq("export", "run").err.splitlines()
    assert re.fullmatch(r"run/model.onnx: \d+ kB, (\d+) of \1 layers on integer kernels, \d+ s", last)


def test_one_s_own_network_goes_through(acq: Acq, folder: Path) -> None:
    """A callable in the current folder with arguments and a nested checkpoint: quantized, evaluated, the same."""
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights(width=6).items()}}, "wide.pt")
    own = ["--checkpoint", "wide.pt", "--model-args", '{"width": 6}']
    figures = acq(*quantize(*own, "--data", "data.npz", "--bits", "w8a8", "--ends", "same", "--json")).json()
    assert figures["model"] == "tinynet:network"
    assert (figures["bits"], figures["ends"]) == ("w8a8", "same")
    teacher = acq("evaluate", *NETWORK, *own, "--data", "data.npz", "--json").json()
    student = acq("evaluate", "run", "--data", "data.npz", "--json").json()
    assert (teacher["top1"], teacher["images"]) == (figures["teacher_top1"], 10)
    assert student["top1"] == figures["top1"]
    assert acq("evaluate", "run", "--data", "data.npz", "--limit", "4", "--json").json()["images"] == 4


def test_evaluating_asks_for_no_batch_norm(acq: Acq) -> None:
    """What is only evaluated need not be quantizable: any classifier is."""
    answer = acq("evaluate", *of("without_norms"), "--data", "data.npz", "--json").json()
    assert answer["images"] == 10


def test_a_dry_run_writes_nothing(acq: Acq, folder: Path) -> None:
    """It shows the plan and the settings, as text or as JSON, and trains nothing."""
    before = files(folder)
    answer = acq(*quantize("--dry-run", "--preset", "fast"))
    assert answer.code == 0
    assert "conv2d" in answer.out
    assert "preset: fast" in answer.out
    assert "nothing was written" in answer.out
    assert re.search(r"it would take about [\d.]+ min here \(generator \d+ s, images \d+ s, cal", answer.out)
    described = acq(*quantize("--dry-run", "--json", "--seed", "5")).json()
    assert described["config"]["seed"] == 5
    assert described["plan"][0]["role"] == "image"
    assert all(value >= 0 for value in described["seconds"].values())
    assert files(folder) == before


def test_settings_come_from_preset_file_and_options(acq: Acq, folder: Path) -> None:
    """An option counts more than ``--set``, that more than a file, and that more than the preset."""
    (folder / "c.yaml").write_text("preset: fast\nbits: w3a3\nseed: 7\nstudent: {steps: 11, batch: 5}\n")
    arguments = ["--config", "c.yaml", "--dry-run", "--json"]
    config = acq(*quantize(*arguments, "--set", "student.steps=12", small=[])).json()["config"]
    assert (config["preset"], config["bits"], config["seed"]) == ("fast", "w3a3", 7)
    assert config["student"]["steps"] == 12
    assert config["student"]["batch"] == 5
    config = acq(*quantize(*arguments, "--set", "seed=8", "--seed", "9", "--bits", "w2a2", "--preset", "best")).json()
    assert [config["config"][name] for name in ("seed", "bits", "preset")] == [9, "w2a2", "best"]


def test_an_assumed_normalisation_is_noted(acq: Acq) -> None:
    """Whoever gives no mean and deviation is told what was taken."""
    answer = acq("inspect", "tinynet:network", *SIZE)
    assert answer.code == 0
    assert "note: --mean and --std not given" in answer.err
    assert "note" not in acq("inspect", *NETWORK).err


def test_a_plan_is_shown(acq: Acq) -> None:
    """What becomes of each operator, what stays in floating point, and what was found in the network."""
    answer = acq("inspect", *NETWORK, "--bits", "w3a5", "--ends", "same")
    assert answer.code == 0
    assert "batch_norm" in answer.out
    assert "0 operators stay in floating point" in answer.out
    found = acq("inspect", *NETWORK, "--json").json()
    assert (found["classes"], found["batch_norms"], found["attention"]) == (5, 2, "class activation")
    assert all(row.keys() >= {"node", "weight_bits", "bits", "floating"} for row in found["plan"])


@pytest.mark.parametrize(("addends", "wanted"), [([], {None, 8}), (["--addends", "same"], {None, 4})])
def test_a_plan_is_shown_for_the_addends_asked_for(acq: Acq, addends: list[str], wanted: set[int | None]) -> None:
    """The branches of a residual network have the width of the option."""
    rows = acq("inspect", "resnet20-cifar10", *addends, "--json").json()["plan"]
    assert {row["bits"] for row in rows if row["role"] == "fold"} == wanted


def test_built_in_networks_are_listed(acq: Acq) -> None:
    """By name, as a table and as JSON."""
    assert "resnet20-cifar10" in acq("models").out
    assert acq("models", "--json").json()["models"][0]["input_size"] == [3, 32, 32]


def test_the_version_is_told(acq: Acq) -> None:
    assert acq("--version").out == f"acq {importlib.metadata.version('acq')}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("acq qu", "quantize"), ("acq quantize --bu", "--budget"), ("acq inspect resn", "resnet20-cifar10")],
)
def test_a_shell_completes(typed: str, offered: str) -> None:
    """Commands, options and built-in networks."""
    environment = {**os.environ, "_ACQ_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    environment["COMP_CWORD"] = str(len(typed.split()) - 1)
    command = [sys.executable, "-c", "import sys; sys.argv = ['acq']; from acq.cli import main; main()"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.split() == [offered]


def test_help_is_no_error(acq: Acq) -> None:
    """Asked for, or given to whoever types the name alone."""
    for arguments in (["--help"], [], ["quantize", "--help"]):
        answer = acq(*arguments)
        assert answer.code == 0
        assert "Usage" in answer.out


def test_a_failed_run_is_no_wrong_request(acq: Acq, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw keeps its traceback, which Python turns into exit code 1."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(ZeroDivisionError):
        acq(*quantize())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "acq", *arguments]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_ctrl_c_saves_and_resume_goes_on(acq: Acq, folder: Path) -> None:
    """``python -m acq`` ends with 130 and no traceback; resumed, it makes the bytes of a run without a break."""
    arguments = quantize(small=[*SMALL, "generator.steps=80"])
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        metrics = folder / "run" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped at " in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    assert (folder / "run" / "checkpoint" / "state.pt").exists()
    resumed, whole = acq(*arguments, "--resume"), acq(*arguments, "--out", "whole")
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    names = ("student.safetensors", "quantization.json")
    for name in names:
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps[:8] == [10 * (i + 1) for i in range(8)]


def test_the_command_itself_ends_with_its_code(traps: Path) -> None:
    """A process of its own: one line, code 2, and nothing of torch's own words, even where tracing fails."""
    arguments = quantize(network=of("Undecided"))
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line != "building"]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: the network cannot be traced")
