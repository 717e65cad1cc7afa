"""Each script of benchmarks/ runs with a few steps, and the committed results are what the scripts would make again."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import small_runs
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from acq import cli
from acq.analysis.expected_loss import FITTED
from acq.core.values import Preprocessing
from acq.zoo.registry import BUILTINS
from acq.zoo.resnet import CifarResNet

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks"
MODEL = "resnet20-cifar10"
FEW = (
    "generator.steps=2", "generator.batch=8", "generator.noise_dim=4", "generator.width=8", "images.count=16",
    "images.batch=16", "images.steps=1", "calibration.images=8", "student.steps=2", "student.batch=8", "device=cpu",
)  # fmt: skip
pytestmark = [
    pytest.mark.xdist_group("benchmarks"),  # one process imports the scripts and traces the network
    pytest.mark.filterwarnings("ignore:training made the student worse"),  # after two steps
    pytest.mark.filterwarnings("ignore:the student is of no use"),
]
Script = Callable[[str], ModuleType]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """``script("name")`` is a script that writes its results to ``tmp_path / "docs" / "benchmarks"``.

    In this process the bundled network has one block per stage; a process of its own has the whole network.
    """
    small_runs.quick(monkeypatch)
    weights = tmp_path / "bundled.safetensors"
    save_file(CifarResNet(blocks=1).state_dict(), weights)
    smaller = replace(BUILTINS[MODEL], build=partial(CifarResNet, blocks=1), weights=lambda: weights)
    monkeypatch.setitem(BUILTINS, MODEL, smaller)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    folder = tmp_path / "docs" / "benchmarks"
    monkeypatch.setattr(importlib.import_module("runs"), "RESULTS", folder)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if ROOT / "benchmarks" in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
            del sys.modules[name]


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Labelled images for the bundled network."""
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar10-test.npz", images=images, labels=np.arange(20) % 10)
    return "cifar10-test.npz"


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(json.loads((folder / "docs" / "benchmarks" / f"{name}.json").read_text())["rows"])


def page_of(folder: Path, name: str) -> str:
    return (folder / "docs" / "benchmarks" / f"{name}.md").read_text()


def test_conformance_measures_once_and_writes_the_page(
    script: Script, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run becomes a row with the figures of its summary, is not repeated, and is a line of the page."""
    conformance, conformance_page = script("conformance"), script("conformance_page")
    cases, networks = script("cases"), script("case_networks")
    monkeypatch.setattr(conformance, "acq", lambda words, modules: CliRunner().invoke(cli.app, words).stdout)
    tiny = networks.Network("tiny", "Tiny", ("A network.",), MODEL, data)
    other = networks.Network("other", "Other", ("A network without data.",), MODEL, "nothing.npz")
    chosen = [cases.Case(tiny, "w8a8", FEW, seeds=(0,)), cases.Case(other, "w4a4")]
    for words in (["--list"], ["--data-folder", "."], ["--data-folder", "."]):
        assert conformance.main(words, chosen) == 0
    said = capsys.readouterr().out
    assert "w8a8" in said.splitlines()[0]
    assert "it has a row; give --again to repeat it" in said
    assert "nothing.npz is missing; give its folder as --data-folder" in said
    (row,) = rows_of(tmp_path, "conformance")
    asked = {
        "model", "bits", "placement", "first_last_bits", "add_bits", "preset", "seed", "teacher_top1", "top1",
        "agreement", "seconds", "peak_memory_mb", "float_bytes", "quantized_bytes", "device", "threads", "torch",
        "commit", "date", "command", "engine",
    }  # fmt: skip
    assert asked <= row.keys()
    assert conformance_page.EARLIER_ENGINE not in (tmp_path / "docs" / "results.md").read_text()
    assert row["command"].startswith(f"acq quantize {MODEL} --bits w8a8 --set generator.steps=2")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert f"| w8a8 | `{chosen[0].options}` | {row['teacher_top1']:.2f} → {row['top1']:.2f} | 1 |" in page
    assert "- `other/w4a4`" in page
    assert "- `tiny/w8a8" not in page
    assert row["command"] in page
    later = [cases.Case(replace(tiny, engine="later"), "w8a8", FEW, seeds=(0,))]
    conformance.main(["--page"], later)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert f"{row['teacher_top1']:.2f} → {row['top1']:.2f}" in page
    assert conformance_page.EARLIER_ENGINE in page
    assert f"- `{later[0].name}`" in page


def test_a_line_has_the_interval_and_the_stops_of_its_runs(script: Script) -> None:
    """The interval is that of the drop if changes were counted, else that of a share. Rows of before know no stop."""
    conformance_page = script("conformance_page")
    row = {
        "teacher_top1": 91.0, "top1": 90.0, "test_images": 1000, "agreement": 99.0, "quantized_bytes": 1,
        "float_bytes": 4, "seconds": 60.0, "peak_memory_mb": 500, "device": "cpu", "threads": 2, "commit": "abc",
    }  # fmt: skip
    stopped = {**row, "top1": 91.0, "stopped": {"phase": "few", "step": 40, "reason": "good"}}
    found = conformance_page.figures([row, stopped])
    assert found[:5] == ["91.00 → 90.50 ± 0.71", 2, "0.50", f"({196 * (0.905 * 0.095 / 1000) ** 0.5:.2f})", None]
    counted = [{**row, "images_lost": 20, "images_gained": 10}, {**stopped, "images_lost": 5, "images_gained": 5}]
    errors = [(30 - 10**2 / 1000) ** 0.5, 10**0.5]
    assert conformance_page.interval(counted) == f"{196 * sum(errors) / 2 / 1000:.2f}"
    assert found[5:] == ["99.0", "25.0 %", "end, few images", "60", 500, "cpu, 2 threads", "abc"]


def test_a_line_has_the_loss_that_its_runs_expect(script: Script) -> None:
    """That of the mean error of the students that were kept. Rows of before have no figures for it."""
    conformance_page = script("conformance_page")
    rows = [
        {
            "student_loss": {"first": 5.0, "trained": 5 * error, "selected": "trained"},
        }
        for error in (0.03, 0.05)
    ]
    loss = FITTED.loss(0.04)
    assert conformance_page.expected([*rows, {}]) == f"{loss.points:.2f} ({loss.low:.2f} to {loss.high:.2f})"


def test_the_first_student_of_a_run_is_measured_once(
    script: Script, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case with a row of its whole run has a line with both accuracies and their difference."""
    conformance, first = script("conformance"), script("first_student")
    monkeypatch.setattr(conformance, "acq", lambda words, modules: CliRunner().invoke(cli.app, words).stdout)
    tiny = script("case_networks").Network("tiny", "Tiny", ("A network.",), MODEL, data)
    chosen = [script("cases").Case(tiny, bits, FEW, seeds=(0,)) for bits in ("w4a4", "w3a3")]
    conformance.main(["--data-folder", ".", "--only", "w4a4"], chosen)
    for _ in range(2):
        assert first.main(["--data-folder", "."], chosen) == 0
    (row,), (whole,) = rows_of(tmp_path, "first_student"), rows_of(tmp_path, "conformance")
    assert row["case"] == chosen[0].name
    assert row["teacher_top1"] == whole["teacher_top1"]
    if whole["student_loss"]["selected"] == "first":
        assert row["top1"] == whole["top1"]
    means = f"| {row['teacher_top1']:.2f} | {row['top1']:.2f} | {whole['top1']:.2f} |"
    assert f"{means} {whole['top1'] - row['top1']:+.2f} |" in page_of(tmp_path, "first_student")


def test_the_fit_finds_the_law_that_made_the_losses(script: Script) -> None:
    """Leaving out a network judges it by the others: one that follows another law is out of the range."""
    fit = script("expected_loss")
    law = fit.Law(110, 2.0)
    known = [
        fit.Student(name, f"{name}/w4a4", "w4a4", seed, "first", True, error, loss)
        for name in "abcd"
        for seed, error in enumerate((0.03, 0.1, 0.3))
        for loss in astuple(law.loss(error))
    ]
    found = fit.fitted(known)
    assert found.factor == pytest.approx(110, rel=0.02)
    assert found.spread == pytest.approx(2.0, abs=0.1)
    assert fit.covered(fit.judged(known)) >= 90.0
    strange = [replace(one, loss=90.0) if one.network == "d" else one for one in known]
    assert {each.student.network for each in fit.judged(strange) if not each.within} == {"d"}


def test_a_student_has_the_figures_of_its_row(script: Script) -> None:
    """Rows of other engines, of other outputs and of short runs that are not on the list do not count."""
    fit, case = script("expected_loss"), script("cases").CASES[0]
    row = {
        "case": case.name, "seed": 0, "engine": case.network.engine, "bits": "w8a8", "teacher_top1": 91.0, "top1": 90.5,
        "student_loss": {"first": 0.5, "calibrated": 0.25, "selected": "calibrated"},
    }  # fmt: skip
    first = {**row, "top1": 89.0}
    others = [{**row, "engine": "older"}, {**row, "student_loss": {"first": None}}, {**row, "case": "unknown/w8a8"}]
    found = fit.measured([row, *others], [first])
    assert [(one.name, one.error, one.loss) for one in found] == [("calibrated", 0.05, 0.5), ("first", 0.1, 2.0)]
    kept = {**row, "student_loss": {"first": 0.5, "selected": "first"}}
    assert [one.name for one in fit.measured([kept], [first])] == ["first"]


def test_the_expected_loss_of_the_package_is_that_of_the_committed_results(script: Script, tmp_path: Path) -> None:
    """Nine of ten rows are within the range that other networks give, and ``main`` writes what is committed."""
    fit = script("expected_loss")
    folder = tmp_path / "docs" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("conformance", "first_student", "expected_loss"):
        (folder / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    assert fit.main([]) == 0
    assert page_of(tmp_path, "expected_loss") == (RESULTS / "expected_loss.md").read_text(encoding="utf-8")
    results = fit.judged(fit.students())
    ends = [each for each in results if each.student.ends]
    assert len({each.student.network for each in results}) >= 9
    assert fit.covered(results) >= 90.0
    assert fit.covered(ends) >= 90.0
    for bits, width in {"w8a8": 2, "w4a8": 2, "w4a4": 6}.items():
        assert fit.median_width([each for each in results if each.student.bits == bits]) <= width


def test_two_commits_are_compared_seed_by_seed(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds that both have make a line; those of one alone count for nothing."""
    compare, runs = script("compare"), script("runs")
    figures = {("aaa1", 0): (90.0, 100), ("aaa1", 1): (91.0, 100), ("aaa1", 2): (50.0, 1), ("bbb2", 0): (90.5, 50)}
    figures[("bbb2", 1)] = (91.1, 40)
    for (commit, seed), (top1, seconds) in figures.items():
        row = {"case": "tiny/w4a4", "device": "cpu", "seed": seed, "commit": commit, "top1": top1, "seconds": seconds}
        runs.keep("conformance", row, ("commit", "seed"))
    assert compare.main(["aaa", "bbb"]) == 0
    line = "| tiny/w4a4 | - | cpu | 0, 1 | 90.50 ± 0.71 | 90.80 ± 0.42 | +0.30 ± 0.28 | 0.45 |"
    assert capsys.readouterr().out.splitlines()[2:] == [line]
    assert compare.main(["aaa", "ccc"]) == 1
    assert "no case has rows of aaa and ccc" in capsys.readouterr().err


def test_rows_that_were_replaced_are_compared_too(
    script: Script, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A repeated run takes the place of its row, and the history of the repository keeps that."""
    compare, runs = script("compare"), script("runs")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for commit, top1 in (("aaa1", 90.0), ("bbb2", 90.5)):
        row = {"case": "tiny/w4a4", "device": "cpu", "seed": 0, "commit": commit, "top1": top1, "seconds": 10}
        runs.keep("conformance", {**row, "settings": {"images.count": 9}}, ("case", "seed"))
        if commit == "aaa1":
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "-qm", "rows"], check=True)
    assert len(rows_of(tmp_path, "conformance")) == 1
    assert len(runs.history("conformance")) == 2
    assert compare.main(["aaa", "bbb"]) == 0
    assert "| tiny/w4a4 | images.count=9 | cpu | 0 | 90.00 | 90.50 | +0.50 | 1.00 |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's exporter
def test_folded_files_are_cases(script: Script, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has no batch norms, the case says which file is missing, and its command takes the file."""
    cases, networks, folded = script("cases"), script("case_networks"), script("folded")
    monkeypatch.setattr(folded, "NETWORKS", (networks.BUNDLED,))
    case = cases.Case(networks.BUNDLED_FOLDED, "w8a8")
    assert "resnet20-bundled-folded.onnx is missing" in str(case.obstacle(tmp_path))
    folded.main([str(tmp_path)])
    assert case.obstacle(tmp_path) is None
    operators = {node.op_type for node in onnx.load(tmp_path / "resnet20-bundled-folded.onnx").graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators
    assert case.words(0, "data/")[:2] == ["quantize", "data/resnet20-bundled-folded.onnx"]


def test_a_network_may_have_its_module_in_the_data_folder(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case needs the file, its command says where modules are found, and so the run finds it."""
    conformance, cases, networks = script("conformance"), script("cases"), script("case_networks")
    case = cases.Case(networks.SIGNS, "w8a8")
    assert "networks.py is missing" in str(case.obstacle(tmp_path))
    assert case.command(0).startswith("PYTHONPATH=data acq quantize networks:signs ")
    (tmp_path / "networks.py").write_text("from torch import nn\n\ndef signs():\n    return nn.Conv2d(3, 4, 1)\n")
    words = ["inspect", "networks:signs", "--input-size", "3,8,8", "--mean", "0,0,0", "--std", "1,1,1", "--json"]
    assert json.loads(conformance.acq(words, tmp_path))
    with pytest.raises(RuntimeError, match="networks"):
        conformance.acq(words)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's exporter
def test_other_tools_quantize_the_same_network_on_three_kinds_of_images(
    script: Script, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each pair of tool and images is a row beside that of the package, measured once, and a line of the page."""
    networks, static = script("case_networks"), script("static_quantization")
    tiny = networks.Network("tiny", "Tiny", (), MODEL, data, settings=FEW)
    monkeypatch.setattr(static, "NETWORKS", (tiny,))
    monkeypatch.setattr(static, "TOOLS", {"ONNX Runtime": static.TOOLS["ONNX Runtime"]})
    for _ in range(2):
        static.main(["--data-folder", "."])
    assert "skipped tiny: it has its rows; give --again to repeat them" in capsys.readouterr().out
    rows = rows_of(tmp_path, "static_quantization")
    kinds = [(row["tool"], row["images"]) for row in rows]
    assert kinds == [("acq", "none"), *(("ONNX Runtime", kind) for kind in ("noise", "finished", "real"))]
    assert all(row["teacher_top1"] == rows[0]["teacher_top1"] and row["test_images"] == 20 for row in rows)
    assert page_of(tmp_path, "static_quantization").count("| Tiny | ONNX Runtime ") == 3


def test_conformance_reports_a_failed_run(
    script: Script, data: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The error of the command is shown, there is no row, and the exit code is 1."""
    conformance, cases, networks = script("conformance"), script("cases"), script("case_networks")
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    broken = networks.Network("broken", "Broken", (), "no-such-network", data)
    assert conformance.main(["--data-folder", "."], [cases.Case(broken, "w4a4", seeds=(0,))]) == 1
    assert "failed broken/w4a4 seed 0: error: " in capsys.readouterr().out
    assert not (tmp_path / "docs" / "benchmarks" / "conformance.json").exists()


def test_ablation_shares_images_and_gives_the_figures_of_separate_runs(
    script: Script, data: str, tmp_path: Path
) -> None:
    """A run that takes the images of its neighbour ends with the figures of a run that makes its own."""
    words = [MODEL, "--data", data, "--set", *FEW, "--only"]
    script("ablation").main([*words, "all parts", "no rounding", "gdfq", "--gdfq-steps", "2"])
    shared = rows_of(tmp_path, "ablation")
    script("ablation").main([*words, "no rounding"])
    rows = rows_of(tmp_path, "ablation")
    assert [row["variant"] for row in rows] == ["all parts", "gdfq", "no rounding"]
    varying = {"seconds", "peak_memory_mb", "command", "date", "commit"}
    same, alone = ({key: row[key] for key in row.keys() - varying} for row in (shared[1], rows[2]))
    assert same == alone
    assert page_of(tmp_path, "ablation").count("| w4a4 | cpu | 0 |") == 3


def test_ceiling_trains_on_real_images(script: Script, data: str, tmp_path: Path) -> None:
    """The row counts the real images, and no step of generator or images is done."""
    script("ceiling").main([MODEL, "--data", data, "--images", data, "--count", "16", "--set", *FEW])
    (row,) = rows_of(tmp_path, "ceiling")
    assert row["real_images"] == 16
    assert row["steps"] == {"student": 2}
    assert "| resnet20-cifar10 | w4a4 |" in page_of(tmp_path, "ceiling")


def test_conditioning_measures_each_generator(script: Script, tmp_path: Path) -> None:
    """One row per variant, with the figures of new images."""
    few = ["--steps", "2", "--images", "64", "--only", "all losses", "gdfq"]
    script("conditioning").main([MODEL, *few])
    rows = rows_of(tmp_path, "conditioning")
    assert [row["variant"] for row in rows] == ["all losses", "gdfq"]
    assert all(-1 <= row["correlation"] <= 1 and "statistics" in row["losses"] for row in rows)
    assert "| gdfq | 2 | 0 |" in page_of(tmp_path, "conditioning")


def test_claims_compare_acq_with_gdfq_and_without_each_part(
    script: Script, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variant has a row per bit-width and seed, measured once; the page pairs them by seed and has two plots."""
    claims, networks = script("claims"), script("case_networks")
    monkeypatch.setattr(claims, "IMAGES", 64)
    study = claims.Study(networks.Network("tiny", "Tiny", (), MODEL, data), ("w4a4", "w3a3"), (10, 11))
    few = ["--data-folder", ".", "--set", *(setting for setting in FEW if not setting.startswith("images."))]
    few += ["images.count=16", "student.renew_count=4"]
    claims.main(few, [study])
    rows = rows_of(tmp_path, "claims")
    assert [row["variant"] for row in rows[:3]] == ["real images", "ACQ", "ACQ"]
    assert len(rows) == 1 + 2 * 2 * len(claims.VARIANTS)
    assert {row["preset"] for row in rows if row["variant"] == "GDFQ"} == {"gdfq"}
    assert {row["placement"] for row in rows[1:]} == {"relu-only"}
    assert all(-1 <= row["observed"]["class_similarity"] <= 1 for row in rows)
    claims.main(few, [study])
    assert rows_of(tmp_path, "claims") == rows
    page = page_of(tmp_path, "claims")
    assert page.count("| Tiny | w3a3 |") == len(claims.VARIANTS)
    assert re.search(r"\| Tiny \| w4a4 \| GDFQ \| .* \| [+-]\d+\.\d\d ± \d+\.\d\d \| \S+ \| 10, 11 \|", page)
    for name in ("accuracy", "attention"):
        assert f"claims-{name}.svg" in page
        assert (tmp_path / "docs" / "benchmarks" / f"claims-{name}.svg").read_text().count("Tiny") >= 5


def test_the_table_of_the_paper_takes_weights_and_a_folder_of_photographs(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each preset has a row, measured once. Images of any size are read, and labels are places of their folders.

    The network is narrow, and runs in this process.
    """
    paper, nets = script("paper"), script("networks.imagenet_resnets")
    monkeypatch.setattr(nets, "resnet18", partial(nets.ResNet, nets.Basic, (1, 1, 1, 1), stem=8))
    monkeypatch.setattr(paper.conformance, "acq", lambda words, *_: CliRunner().invoke(cli.app, words).stdout)
    torch.save(nets.resnet18().state_dict(), tmp_path / "resnet18.pth")
    for number in range(1000):
        (tmp_path / "val" / f"n{number:08}").mkdir(parents=True)
    for number, size in ((3, (60, 40)), (70, (40, 90)), (999, (33, 33))):
        Image.new("RGB", size, (number % 256, 0, 0)).save(tmp_path / "val" / f"n{number:08}" / "one.JPEG")
    (tmp_path / "val" / "n00000003" / "notes.txt").write_text("no image")
    few = [setting for setting in FEW if setting.split("=")[0] not in ("device", "images.steps")]
    words = ["--resnet18", "resnet18.pth", "--images", "val", "--side", "32", "--workers", "0"]
    words += ["--runs", "runs", "--set", *few, "student.renew_count=4"]
    assert paper.main(words) == 0
    rows = rows_of(tmp_path, "paper")
    assert [(row["network"], row["preset"], row["test_images"]) for row in rows] == [
        ("resnet18", "acq", 3),
        ("resnet18", "gdfq", 3),
    ]
    assert page_of(tmp_path, "paper").count("| resnet18 | 32 |") == 2
    assert paper.main(words) == 0
    assert rows_of(tmp_path, "paper") == rows
    images = paper.Photographs(Path("val"), Preprocessing((3, 32, 32), paper.MEAN, paper.STD))
    assert [(tuple(image.shape), label) for image, label in images] == [((3, 32, 32), n) for n in (3, 70, 999)]


def test_what_the_paper_lost_stands_beside_its_own_setting_alone(script: Script) -> None:
    paper = script("paper")
    row = {
        "network": "resnet50", "weights": "1", "side": 224, "preset": "acq", "bits": "w4a4", "seed": 0, "settings": {},
        "teacher_top1": 76.0, "top1": 70.0, "seconds": 1.0, "commit": "c",
    }  # fmt: skip
    page = paper.page([row, row | {"preset": "gdfq"}, row | {"side": 32}])
    assert page.count("| 6.00 | 5.5 |") == 1
    assert page.count("| 6.00 | - |") == 2


def test_missing_weights_and_classes_are_refused_before_the_run(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val" / "n1").mkdir(parents=True)
    with pytest.raises(SystemExit):
        script("paper").main(["--resnet18", "none.pth", "--images", "val"])
    assert "there are no weights at none.pth" in capsys.readouterr().err
    (tmp_path / "r.pth").touch()
    with pytest.raises(SystemExit, match="has 1 folders with 0 images; give a folder with 1000 folders"):
        script("paper").main(["--resnet18", "r.pth", "--images", "val"])


def test_a_command_that_fails_says_why(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun more lines follow that of the command."""
    conformance, commands = script("conformance"), []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1, stdout="", stderr="warning: slow\nerror: no such file\n=====\n")

    monkeypatch.setattr(conformance.subprocess, "run", run)
    for processes in (1, 4):
        with pytest.raises(RuntimeError, match=r"^error: no such file$"):
            conformance.acq(["quantize"], None, processes)
    assert commands[0][1:] == ["-m", "acq", "quantize"]
    assert commands[1][1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "acq", "quantize",
    ]  # fmt: skip


def test_the_middle_of_a_photograph_is_cut_out(script: Script) -> None:
    """The shorter side becomes 8/7 of the square."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 90:110] = 255
    cut = np.asarray(script("paper").middle(Image.fromarray(pixels), 224))
    assert cut.shape == (224, 224, 3)
    white = cut[112, :, 0] > 127
    assert (white.sum(), white.argmax()) == (pytest.approx(20 * 2.56, abs=1), pytest.approx(112 - 10 * 2.56, abs=1))


@pytest.mark.parametrize(("name", "weights"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_imagenet_resnets_have_the_weights_of_torchvision(script: Script, name: str, weights: int) -> None:
    """The numbers of weights are those that torchvision documents, and so are names and places."""
    network = getattr(script("networks.imagenet_resnets"), name)()
    assert sum(each.numel() for each in network.parameters()) == weights
    names = network.state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer4.1.conv2.weight",
        "layer2.0.downsample.1.weight",
        "fc.bias",
    } <= names


def test_differences_of_pairs_have_an_interval(script: Script) -> None:
    """Values of a table of Student's t: four pairs, mean 2.5, and 3.182 standard errors."""
    pages = script("claims_page")
    rows = [
        {"variant": name, "seed": seed, "top1": 90.0 + (seed if name == "ACQ" else 0)}
        for name in ("ACQ", "GDFQ") for seed in (1, 2, 3, 4)
    ]  # fmt: skip
    gap, p = pages.behind(rows, "GDFQ")
    assert gap == f"+2.50 ± {3.182 * (5 / 3) ** 0.5 / 2:.2f}"
    assert p == "0.03"  # of t = 3.87 with 3 degrees of freedom
    assert pages.behind(rows[:5], "GDFQ") == ("-", "-")


def test_similarity_within_a_class_is_that_of_all_pairs(script: Script) -> None:
    """The sum of unit vectors gives the mean cosine of all pairs of different images, class by class."""
    attention, rng = script("attention"), torch.Generator().manual_seed(0)
    maps, label = torch.rand(7, 3, 3, generator=rng), torch.tensor([0, 1, 0, 2, 0, 1, 0])
    means = []
    for k in (0, 1):
        rows = maps[label == k].flatten(1)
        pairs = [torch.cosine_similarity(a, b, dim=0) for i, a in enumerate(rows) for b in rows[:i]]
        means.append(torch.stack(pairs).mean())
    assert attention.class_similarity(maps, label) == pytest.approx(torch.stack(means).mean().item(), abs=1e-6)


def test_speed_measures_every_phase(script: Script, tmp_path: Path) -> None:
    """Each phase has a time per step and the steps of the whole run."""
    few = [setting for setting in FEW if ".steps" not in setting]
    script("speed").main([MODEL, "--steps", "2", "--set", *few])
    (row,) = rows_of(tmp_path, "speed")
    steps = {phase["phase"]: phase["steps"] for phase in row["phases"]}
    assert steps == {"first": 1, "generator": 500, "images": 100, "calibration": 1, "student": 600, "conversion": 1}
    assert all(phase["step"] > 0 for phase in row["phases"])
    assert row["operators"]


def test_export_measures_a_finished_run(script: Script, finished_run: Path, tmp_path: Path) -> None:
    """The file of a small run gives its student's classes on the labelled images."""
    pytest.importorskip("onnxruntime")
    export = script("export")
    images = np.random.default_rng(0).integers(0, 256, (20, *small_runs.SIZE[1:], 3), np.uint8)
    np.savez(tmp_path / "small.npz", images=images, labels=np.arange(20) % 5)
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    export.main([str(run), "--data", "small.npz", "--seconds", "0.01"])
    (row,) = rows_of(tmp_path, "export")
    assert row["test_images"] == 20
    assert row["agreement"] >= 95
    assert row["bytes"] == (run / "model.onnx").stat().st_size
    assert row["command"] == "python benchmarks/export.py data/run --data small.npz --seconds 0.01"


def test_latency_measures_a_network_and_writes_the_page(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row per network and bit-width, which is a line of the page."""
    pytest.importorskip("onnxruntime")
    latency, networks = script("latency"), script("networks")
    monkeypatch.setattr(latency, "NETWORKS", [each for each in networks.ARCHITECTURES if "LeNet" in each.name])
    latency.main(["LeNet*", "--bits", "w8a8", "w4a8", "--seconds", "0.01"])
    latency.main(["ResNet*"])
    rows = rows_of(tmp_path, "latency")
    assert [(row["network"], row["bits"], row["kernels"]) for row in rows] == [
        ("LeNet (tanh)", "w8a8", "4 of 4"),
        ("LeNet (tanh)", "w4a8", "4 of 4"),
    ]
    assert rows[1]["megabytes"] < rows[0]["megabytes"]
    page = (tmp_path / "docs" / "benchmarks" / "latency.md").read_text()
    assert all(f"| LeNet (tanh) | {row['bits']} | {row['megabytes']} |" in page for row in rows)


def test_architectures_measures_a_network_and_writes_the_page(script: Script, tmp_path: Path) -> None:
    """A row per form, which is a line of the page; what is there is not measured again."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    architectures = script("architectures")
    words = ["LeNet*", "--forms", "module", "--out", "rows"]
    architectures.main([*words, "--here"])
    architectures.main(words)
    architectures.main(["--page", "--out", "rows"])
    (row,) = rows_of(tmp_path, "architectures")
    assert (row["integer"], row["layers"], row["missed"]) == (4, 4, {})
    assert row["student"]["decibels"] > 20
    page = (tmp_path / "docs" / "architectures.md").read_text()
    assert "| LeNet (tanh) | 1x32x32 | 10 classes |" in page
    assert "not measured | 4 of 4 | none |" in page


def test_architectures_says_why_a_network_fails(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that fails is a row too, and other forms are measured all the same."""
    architectures, networks = script("architectures"), script("networks")
    broken = networks.Architecture("broken", lambda: torch.nn.Dropout(), (3, 32, 32))
    monkeypatch.setattr(architectures, "ARCHITECTURES", [broken])
    architectures.main(["--here", "--forms", "module", "script", "--out", "rows"])
    rows = architectures.load(tmp_path / "rows")
    assert [row["form"] for row in rows] == ["module", "script"]
    assert all("Error" in row["failure"] and row["trace"] for row in rows)


def test_networks_of_architectures_take_their_images(script: Script) -> None:
    """Those that are defined here; timm is not installed everywhere."""
    for each in script("networks").ARCHITECTURES:
        if not isinstance(each.build, partial):
            each.build().eval()(torch.zeros(2, *each.size))


@pytest.mark.parametrize("name", ["conformance", "ablation", "export"])
def test_committed_results_have_the_present_form(name: str) -> None:
    """Names of version 0.1 are gone, and every row has a commit and a command."""
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    assert not re.search(r'"(ends|addends|floating|kept)"|--ends|--addends', text)
    assert all(row["commit"] and row["command"] for row in json.loads(text)["rows"])


def test_committed_pages_are_current(script: Script, tmp_path: Path) -> None:
    """``--page`` writes what is committed."""
    conformance = script("conformance")
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    for file in RESULTS.iterdir():
        if file.suffix in (".json", ".md"):
            (tmp_path / "docs" / "benchmarks" / file.name).write_bytes(file.read_bytes())
    assert conformance.main(["--page"]) == 0
    for name in ("ablation", "export"):
        script(name).write(script("runs").load(name))
    script("first_student").page(script("cases").CASES)
    script("static_quantization").page(script("runs").load("static_quantization"))
    script("latency").write(script("runs").load("latency"))
    pages = [
        ROOT / "docs" / "results.md",
        *(RESULTS / f"{name}.md" for name in ("ablation", "export", "first_student", "latency", "static_quantization")),
    ]
    for page in pages:
        assert (tmp_path / page.relative_to(ROOT)).read_text() == page.read_text(encoding="utf-8")


def test_committed_architectures_are_those_of_the_list(script: Script, tmp_path: Path) -> None:
    """At least 40 networks have rows, in the order of the list, and ``--page`` writes what is committed."""
    shown = {each.name: list(each.size) for each in script("networks").ARCHITECTURES}
    rows = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    assert len(names) >= 40
    assert names == [name for name in shown if name in names]
    assert all(row["size"] == shown[row["name"]] and row["commit"] for row in rows)
    page = script("architecture_page").page(rows)
    assert page == (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")


def test_committed_commands_are_accepted(script: Script) -> None:
    """Each row of docs/results.md is of a case, and ``acq quantize`` knows its options and settings."""
    cases = {case.name: case for case in script("cases").CASES}
    command = typer.main.get_command(cli.app).commands["quantize"]  # type: ignore[attr-defined]
    for row in json.loads((RESULTS / "conformance.json").read_text(encoding="utf-8"))["rows"]:
        case = cases[row["case"]]
        assert row["command"] == case.command(row["seed"])
        words = shlex.split(row["command"].partition("acq quantize ")[2])
        given = command.make_context("quantize", words, resilient_parsing=True).params
        assert (given["bits"], given["seed"]) == (case.bits, row["seed"])
        config = case.config(row["seed"])
        used = config.placed(row["placement"]) if config.placement == "auto" else config
        assert used.headline().items() <= row.items()
