"""README and documentation: commands and examples run, links resolve, generated pages are current.

Commands run on small networks with a few steps. Dated notes and ``docs/history`` are not run: they keep the names of
their time.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import acq
from acq import cli, presets
from acq.config import Config
from acq.synthesis import generators, losses
from acq.zoo.registry import BUILTINS
from acq.zoo.resnet import CifarResNet

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "recipes" / "README.md"]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/history/*.md")), *sorted(ROOT.glob("docs/notes/*.md"))]
WITH_CODE = [page for page in PAGES if re.search(r"^```(sh|python|yaml)$", page.read_text(encoding="utf-8"), re.M)]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEW: dict[str, Any] = {
    "generator": {"steps": 2, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 16, "batch": 16, "steps": 1},
    "calibration": {"images": 8, "rounding": False},
    "student": {"steps": 2, "batch": 8, "learning_rate": 0.001, "scale_learning_rate": 0.0003},
}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# names of version 0.1
OLD = re.compile(
    r"--ends\b|--addends\b|\baddends\b|binary_scales|calibration_images|student\.(equalization|rounding|views)|"
    r"images\.renew_|generator\.spread|insight\.json|acq\.report\(|\[processes\]|acq\[|floating\"|\bfreezing\b"
)
# two steps are too few for a student to gain by them
pytestmark = [
    pytest.mark.filterwarnings("ignore:training made the student worse"),
    pytest.mark.filterwarnings("ignore:the student is of no use"),
    pytest.mark.filterwarnings("ignore::acq.errors.Note"),
]


def build(classes: int = 10) -> nn.Module:
    parts = {
        "layer1": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        "layer3": nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "head": nn.Sequential(nn.Linear(8, classes)),
    }
    return nn.Sequential(OrderedDict(parts))


NETWORK = f"from collections import OrderedDict\n\nfrom torch import nn\n\n\n{inspect.getsource(build)}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: a package with a network, its weights and labelled images. Presets have a few steps."""
    small_runs.quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(presets, "PRESETS", dict.fromkeys(presets.PRESETS, FEW))
    monkeypatch.setattr("acq.cli.quantize._report", lambda run, quiet: None)  # `acq report` on the pages writes it
    # OpenVINO omits some roundings: one of 16 images in another class would be more than one percent
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "openvino" else find(name, *more)
    )
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "nets.py").write_text(NETWORK)
    torch.save(build().state_dict(), tmp_path / "weights.pth")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(20) % 10)
    for name, image in zip(("cat.png", "dog.jpg"), images, strict=False):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "names.txt").write_text("\n".join(BUILTINS["resnet20-cifar10"].class_names))
    _shrink_the_bundled_network(tmp_path, monkeypatch)
    registries: list[dict[str, Any]] = [losses.LOSSES, generators.GENERATORS]  # examples add to them
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, names in zip(registries, before, strict=True):
        for name in registry.keys() - names.keys():
            del registry[name]
    for name in [name for name in sys.modules if name.split(".")[0] == "mypackage"]:
        del sys.modules[name]


def _shrink_the_bundled_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block per stage, with the layer names of the whole network."""
    weights, name = folder / "bundled.safetensors", "resnet20-cifar10"
    save_file(CifarResNet(blocks=1).state_dict(), weights)
    smaller = replace(
        BUILTINS[name],
        build=partial(CifarResNet, blocks=1),
        weights=lambda: weights,
        sample=folder / "test.npz",
    )
    monkeypatch.setitem(BUILTINS, name, smaller)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without a redirection at its end."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: words.index(">")] if ">" in words else words


def run_acq(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command; numbers of steps in it become small."""
    short = [re.sub(r"(student\.steps)=\d+", r"\1=2", word) for word in words]
    monkeypatch.setattr(sys, "argv", short)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("page", WITH_CODE, ids=_name)
def test_commands_and_examples_of_a_page_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From top to bottom in one folder, each without an error."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), space)
        elif language == "yaml":
            assert Config.create("default", yaml.safe_load(text))
        elif language == "sh":
            for words in commands(text):
                _run(words, page, monkeypatch, capsys)
        else:
            assert language in ("text", "bibtex"), f"{page.name} has a block of {language}, which nothing checks"


def _run(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] == "torchrun":  # tests/core/test_processes.py starts processes; here the command of each one runs
        assert words[words.index("-m") + 1] == "acq"
        words = words[words.index("-m") + 1 :]
    if words[0] == "acq":
        assert run_acq(words, monkeypatch) == 0, (words, capsys.readouterr().err)
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    else:
        assert words[:2] == ["pip", "install"], f"{page.name} shows a command that nothing runs: {words}"
        assert _extras(words) <= set(_project()["optional-dependencies"])


def _extras(words: list[str]) -> set[str]:
    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
    return {extra for names in named for extra in names.split(",")}


def _project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_are_in_fences(page: Path) -> None:
    """Where the test above finds them: no indented block begins with a command."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"    (acq|make|pip|python|torchrun) ", line)]


@pytest.mark.parametrize("page", LINKED, ids=_name)
def test_links_resolve(page: Path) -> None:
    """Each link leads to a file of the repository, and each anchor to a heading; web addresses are not opened."""
    text = re.sub(r"`[^`\n]+`", "", re.sub(FENCE, "", page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor and not anchor.startswith("acq."):  # those are made from docstrings
            assert anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(FENCE, "", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_page_uses_names_of_version_0_1(page: Path) -> None:
    """Options, settings, files and words that the changelog lists as renamed."""
    found = OLD.search(page.read_text(encoding="utf-8"))
    assert found is None, found


def test_generated_pages_are_current() -> None:
    """``python docs/generate.py`` writes what is committed."""
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [name for name, text in written.items() if (ROOT / "docs" / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/generate.py: {', '.join(stale)}"


def test_every_setting_is_documented() -> None:
    """The page of settings has a row with a meaning for each of them."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    values: list[tuple[str, Any]] = list(Config().model_dump().items())
    for name, value in values:
        if isinstance(value, dict) and value:
            values += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            assert re.search(rf"^\| `{re.escape(name)}` \| .+ \| .+ \| \w.+ \|$", text, re.MULTILINE), name


def test_every_public_name_is_documented() -> None:
    """The page of the Python API has a heading for each name of the package."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in acq.__all__ if f"heading: acq.{name}\n" not in text]


def test_the_readme_is_short() -> None:
    """At most 120 lines of 120 characters; a table of at most 8 rows within the first 40 lines; no footnotes."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert not [line for line in lines if len(line) > 120]
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = list(takewhile(lambda line: line.startswith("|"), lines[start:]))
    assert start + len(table) <= 40
    assert len(table) - 2 <= 8
    assert not [line for line in lines if re.search(r"\[\^|[¹²³]", line)]


def test_all_pages_are_in_the_navigation() -> None:
    """The site shows every page but notes, and a version, a name and extras that the package has."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/benchmarks/*.md"), *ROOT.glob("docs/history/*.md")]
    assert not [name for page in pages if (name := str(page.relative_to(ROOT / "docs"))) not in navigation]
    assert f"version: {_project()['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {_project()['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_faults_name_their_tests() -> None:
    """Each row of the table of faults ends in files of tests that exist."""
    table = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)`", row.rsplit("|", 2)[1])
        assert named, row
        for name in named:
            assert list((ROOT / "tests").rglob(name)), name


def test_examples_of_help_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Command by command, in the order in which they are listed."""
    endings = [command.epilog or "" for command in cli.app.registered_commands]
    shown = [line for ending in endings for line in ending.splitlines() if line.startswith("acq ")]
    assert len(shown) > 5
    needs_a_run = [line for line in shown if "acq quantize" in line]
    for line in [*needs_a_run, *(line for line in shown if line not in needs_a_run)]:
        for words in commands(line):
            assert run_acq(words, monkeypatch) == 0, (line, capsys.readouterr().err)
