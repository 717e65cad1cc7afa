"""Every command and example of the README and the documentation is run as it stands, on recipes of a few steps."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from acq import api, cli, config, recipe, zoo
from acq.config import Config
from acq.synthesis import generators, losses
from acq.training.trainer import GeneratorPlan, ImagePlan, StudentPlan
from acq.zoo.registry import BUILTINS

ROOT = Path(__file__).parents[1]
# two steps, which is what training has here, are too few for a student not to be worse for them
pytestmark = pytest.mark.filterwarnings("ignore:training took the student further")

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")], key=lambda page: page.name)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESULTS, NOTES = sorted(ROOT.glob("docs/benchmarks/*.md")), sorted(ROOT.glob("docs/notes/*.md"))
WRITTEN = re.compile(r"`((?:acq|python) \w[^`]+ [^`]+)`")  # a command within a line, not the name of one


def build(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


NETWORK = f"from torch import nn\n\n\n{inspect.getsource(build)}"
FEW: dict[str, Any] = {
    "generator": {"steps": 2, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 16, "batch": 16, "steps": 1},
    "student": {"batch": 8, "calibration_images": 8, "learning_rate": 0.001, "scale_learning_rate": 0.0003},
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: a package with a network, its weights and labelled images; presets of a few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "nets.py").write_text(NETWORK)
    torch.save(build().state_dict(), tmp_path / "weights.pth")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(20) % 10)
    monkeypatch.setattr(config, "PRESETS", dict.fromkeys(config.PRESETS, FEW))
    monkeypatch.setattr(config, "_USUAL_STEPS", dict.fromkeys(config._USUAL_STEPS, 2))
    monkeypatch.setattr(recipe, "_FRESH", 64)
    # of 16 images one that OpenVINO, which sums otherwise, takes for another class would be more than a hundredth
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "openvino" else find(name, *more)
    )
    monkeypatch.setattr(zoo, "sample_of", lambda _: tmp_path / "test.npz")
    registries: list[dict[str, Any]] = [losses.LOSSES, generators.GENERATORS]  # examples add to them
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, names in zip(registries, before, strict=True):
        for name in registry.keys() - names.keys():
            del registry[name]
    for name in [name for name in sys.modules if name.split(".")[0] == "mypackage"]:
        del sys.modules[name]


def run_acq(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    short = [re.sub(r"(student\.steps)=\d+", r"\1=2", word) for word in words]  # whose number is an example's
    monkeypatch.setattr(sys, "argv", short)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def extras(words: list[str]) -> set[str]:
    named = re.findall(r"acq\[([\w,]+)\]", " ".join(words))
    return {extra for names in named for extra in names.split(",")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_happens(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands and Python from top to bottom in one folder, each without an error."""
    space: dict[str, Any] = {"__name__": "__main__"}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), space)
        elif language == "yaml":
            assert Config.create("default", yaml.safe_load(text))
        elif language == "sh":
            for words in commands(text):
                if words[0] == "torchrun":
                    run_processes(words)
                elif words[0] == "acq":
                    assert run_acq(words, monkeypatch) == 0, (words, capsys.readouterr().err)
                elif words == [".", ".venv/bin/activate"]:
                    continue
                elif words[0] == "make":
                    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                else:
                    assert words[:2] == ["pip", "install"], f"{page.name} shows a command that nothing runs: {words}"
                    assert extras(words) <= set(known)
        else:
            assert language in ("text", "bibtex"), f"{page.name} has a block of {language}, which nothing checks"


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.name)
def test_commands_that_made_the_results_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word, on networks, images and recipes of the same names that are small; a page of the same kind is what
    comes of them."""
    results, header = _small(folder, monkeypatch), page.read_text(encoding="utf-8").splitlines()[0]
    shown = [words for language, text in blocks(page) if language == "sh" for words in commands(text)]
    for words in shown:
        run_command(words, monkeypatch, capsys)
    made = results / page.name
    assert made.read_text(encoding="utf-8").splitlines()[0] == header
    assert [words for _, text in blocks(made) for words in commands(text) if words not in shown] == []


@pytest.mark.parametrize("page", NOTES, ids=lambda page: page.name)
def test_commands_of_notes_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are written out whole; as above."""
    _small(folder, monkeypatch)
    for index, text in enumerate(WRITTEN.findall(page.read_text(encoding="utf-8"))):
        if "..." not in text:
            places = {"RUN": f"runs/{index}", "BITS": "w4a4", "SEED": "0"}
            run_command([places.get(word, word) for word in shlex.split(text)], monkeypatch, capsys)


def run_processes(words: list[str]) -> None:
    """As it stands, but for the presets."""
    place = words.index("-m")
    assert words[place : place + 2] == ["-m", "acq"]
    script = [str(ROOT / "tests" / "few_steps.py"), json.dumps(FEW)]
    start = [sys.executable, "-m", "torch.distributed.run", *words[1:place], *script, *words[place + 2 :]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] == "acq":
        assert run_acq(words, monkeypatch) == 0, (words, capsys.readouterr().err)
    else:
        assert words[:1] == ["python"], words
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def _small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Networks, data and recipes that pages name, small; where results then go."""
    _small_networks_and_data(folder, monkeypatch)
    plans, latencies = recipe._plans, api.benchmark_run
    monkeypatch.setattr(recipe, "_plans", lambda settings: _short(*plans(settings)))
    monkeypatch.setattr(api, "benchmark_run", lambda run, seconds: latencies(run, seconds=0.01))
    for module in (recipe, cli):  # of results that a GPU made too
        monkeypatch.setattr(module, "choose_device", lambda _: torch.device("cpu"))
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "runs", raising=False)
    monkeypatch.setattr(importlib.import_module("runs"), "RESULTS", folder / "results")
    return folder / "results"


def _short(generator: GeneratorPlan, images: ImagePlan, student: StudentPlan) -> tuple[Any, Any, Any]:
    """A few steps, whatever a command says."""
    return (
        replace(generator, steps=min(generator.steps, 3)),
        replace(images, count=min(images.count, 16)),
        replace(student, steps=min(student.steps, 3)),
    )


def _small_networks_and_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in BUILTINS.items():
        preprocessing = replace(entry.preprocessing, input_size=(3, 32, 32))
        tiny = replace(entry, build=build, weights=lambda: folder / "weights.pth", preprocessing=preprocessing)
        monkeypatch.setitem(BUILTINS, name, tiny)
    save_file(torch.load(folder / "weights.pth", weights_only=True), folder / "resnet20-cifar10.safetensors")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "efficientnet_lite0.yaml").write_text("student: {calibration_images: 8}\n")
    for name in ("cifar10-test.npz", "cifar10-train.npz"):
        shutil.copy(folder / "test.npz", folder / name)
    with np.load(folder / "test.npz") as data:
        for index, (image, label) in enumerate(zip(data["images"], data["labels"], strict=True)):
            target = folder / "imagenet-sample" / f"{label}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{index}.png")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_fences(page: Path) -> None:
    """Where the test above finds them: no indented block begins with a command."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"    (acq|make|pip|python) ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, those that leave it apart."""
    text = re.sub(r"`[^`\n]+`", "", re.sub(FENCE, "", page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_faults_name_their_tests() -> None:
    """Each row of the table ends in tests that exist, or in a whole file of them."""
    first = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    rows = [line for line in first.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", row.rsplit("|", 2)[1])
        assert named, row
        for file, test in named:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert (f"def {test}(" if test else "def test_") in text, row


def test_examples_of_help_work(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Command by command, in the order in which they are listed."""
    shown = [line for command in cli.app.registered_commands for line in (command.epilog or "").split("\n\n")[1:]]
    assert len(shown) == 10
    for line in shown:
        assert run_acq(shlex.split(line), monkeypatch) == 0, (line, capsys.readouterr().err)
