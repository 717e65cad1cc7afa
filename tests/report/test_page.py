from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import student_of
from report.made_run import HOSTILE, LAYERS, PLAN, add_latencies, change, make_run, read, write

from acq.api import write_report
from acq.config import Config
from acq.errors import RequestError
from acq.report.page import render
from acq.runs import student_file
from acq.runs.names import QUANTIZATION

SECTIONS = [
    "Finished images", "Conditioning", "Batch-norm statistics", "Training curves", "Sensitivity of layers", "Plan",
    "What to keep in mind", "How to reproduce it",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would load, and what it would show outside folds and inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open_words: list[str] = []
        self._folds = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._folds += tag == "details"

    def handle_endtag(self, tag: str) -> None:
        self._folds -= tag == "details"

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if not self._folds:
            self.open_words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def open_text(self) -> str:
        return " ".join(" ".join(self.open_words).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def page_of(folder: Path) -> str:
    return render(folder, PLAN, "acq quantize <mine>")


def test_the_page_needs_nothing_else(folder: Path) -> None:
    """No address but data within it, no script, and a policy that would refuse both."""
    text = page_of(folder)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag != "script"
        for name in ("src", "href", "xlink:href", "data", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("data:", "#")), (tag, address[:60])
    assert "url(http" not in text
    assert any("default-src 'none'" in (a.get("content") or "") for tag, a in page.tags if tag == "meta")
    assert len(text) < 1e6


def test_what_comes_from_the_run_is_escaped(folder: Path) -> None:
    """Names of networks and phases, notes, layers and losses are text, wherever they are shown."""
    change(folder, "diagnostics.json", statistics=[{"layer": HOSTILE, "mean": 1.0, "deviation": 1.0}])
    layers = read(folder, "diagnostics.json")["layers"]
    change(folder, "diagnostics.json", layers=[row | {"layer": HOSTILE} for row in layers], spread={HOSTILE: 0.1})
    text = page_of(folder)
    assert "<script" not in text
    assert "acq quantize <mine>" in Page(text).text
    assert Page(text).text.count(HOSTILE) > len(LAYERS)


def test_every_picture_says_what_it_shows(folder: Path) -> None:
    """A drawing is either named or hidden inside something that is; a keyboard reaches what scrolls."""
    page = Page(page_of(folder))
    named = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(named) == 4 + 3 + 3  # examples; scatter, spread and statistics; curves
    assert all((attributes.get("aria-label") or "").strip() for attributes in named)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or a.get("role") == "img" for a in drawings)
    for _, attributes in page.tags:
        if "scroll" in (attributes.get("class") or ""):
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]


def test_the_page_leads_with_figures_and_finished_images(folder: Path) -> None:
    """Then conditioning, statistics, curves, sensitivity and plan, and what to keep in mind near the end."""
    text = Page(page_of(folder)).text
    places = [text.index("Top-1 accuracy 91.50 → 90.00 %"), text.index("Agreement 98.50 %")]
    places += [text.index(f" {section} ") for section in SECTIONS]
    assert places == sorted(places)


def test_examples_show_what_was_requested_and_what_came_of_it(folder: Path) -> None:
    """A legend in words; the class in the caption; centres for those who cannot see them."""
    page = Page(page_of(folder))
    assert "Left to right: proposal, start of refinement, finished image, its attention (red)." in page.text
    assert "class 0, seen as class 3" in page.text
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    label = next(label for label in labels if label.startswith("Example 1,"))
    assert "requested class 0, seen as class 3: proposal, start, finished, attention" in label
    assert "Requested centre 0.50, -0.50, realised centre 0.00, 0.25" in label
    assert sum(tag == "image" for tag, _ in page.tags) == 4 * 4  # three stages and a veil each
    assert sum(tag == "circle" for tag, _ in page.tags) == 4 * 3  # a ring with a rim, and a dot


def test_images_as_generated_have_no_stages_before(tmp_path: Path) -> None:
    """The legend then names two images per strip."""
    page = Page(page_of(make_run(tmp_path / "run", stages=("finished",))))
    assert "Left to right: finished image, its attention (red)." in page.text
    assert "refinement finishes" not in page.text
    assert sum(tag == "image" for tag, _ in page.tags) == 4 * 2


def test_conditioning_is_that_of_finished_images_beside_the_generator_s(folder: Path) -> None:
    """With what to compare it to."""
    text = Page(page_of(folder)).text
    assert "correlation 0.950 0.850 of requested and realised centre" in text
    assert "spread 0.210 0.190 standard deviation of realised centres within a class; requested: 0.15" in text
    assert "label agreement 99.5 % 90.0 %" in text
    assert "similarity 0.980 0.970 cosine of attention" in text


def test_the_ten_most_sensitive_layers_are_shown_and_the_others_folded(folder: Path) -> None:
    """With advice for the first whose weights can have another bit: 8 bits of the very first are the most."""
    page = Page(page_of(folder))
    shown = page.open_text[page.open_text.index("Sensitivity of layers") :]
    assert all(f" {name} " in shown for name in LAYERS[:10])
    assert not any(f" {name} " in shown for name in LAYERS[10:])
    assert all(f" {name} " in page.text for name in LAYERS)
    assert "The other 2 layers and tensors" in page.text
    assert "--set layers.block.1.conv=5" in shown
    assert "block.0.conv 10.0 20.0 99.0 8 (7-bit range) 4 0 to 1.5 144" in shown


def test_agreement_per_layer_is_left_out_where_it_says_nothing(folder: Path) -> None:
    """That is where all layers have the same."""
    assert "same class, %" in Page(page_of(folder)).text
    layers = read(folder, "diagnostics.json")["layers"]
    change(folder, "diagnostics.json", layers=[row | {"agreement": 100.0} for row in layers])
    assert "same class, %" not in Page(page_of(folder)).text


def test_the_plan_is_folded(folder: Path) -> None:
    """Its summary says how much of it is in floating point."""
    page = Page(page_of(folder))
    assert f"All {len(PLAN.nodes)} nodes; none in floating point" in page.text
    assert "logits are not quantized" in page.text
    assert "logits are not quantized" not in page.open_text
    plan = replace(PLAN, nodes=(replace(PLAN.nodes[0], floating=True), *PLAN.nodes[1:]))
    text = Page(render(folder, plan, "")).text
    assert "; 1 in floating point" in text
    assert "x image float" in text


def test_latencies_are_shown_where_they_were_measured(folder: Path) -> None:
    """Those of single images."""
    assert "Latency" not in Page(page_of(folder)).text
    add_latencies(folder)
    assert Page(page_of(folder)).text.count("2 → 1 ms per image on") == 2


def test_the_page_is_the_same_twice(folder: Path) -> None:
    """So that a page is not another one because it was made again."""
    assert page_of(folder) == page_of(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("summary.json", {"agreement": "high"}),
        ("summary.json", {"attention": {}}),
        ("summary.json", {"float_bytes": 0}),
        ("diagnostics.json", {"layers": [{}]}),
        ("diagnostics.json", {"statistics": [{}]}),
        ("diagnostics.json", {"centres": [{"requested": [0.1]}]}),
        ("diagnostics.json", {"spread": {"1": "wide"}}),
    ],
)
def test_a_run_with_other_figures_is_damaged(folder: Path, name: str, values: dict[str, Any]) -> None:
    """In one line."""
    change(folder, name, **values)
    with pytest.raises(RequestError, match=r"run is damaged \(.*\); quantize again") as caught:
        page_of(folder)
    assert "\n" not in str(caught.value)


def test_a_figure_that_is_missing_is_damage(folder: Path) -> None:
    """And not an empty place."""
    summary = read(folder, "summary.json")
    del summary["peak_memory_mb"]
    write(folder, "summary.json", summary)
    with pytest.raises(RequestError, match="peak_memory_mb"):
        page_of(folder)


@pytest.fixture
def with_student(folder: Path) -> Path:
    """The folder with a student and the facts that are kept with it."""
    facts = {
        "origin": {"model": "resnet20-cifar10"},
        "config": Config.create("fast", {"seed": 3}).model_dump(mode="json"),
        "preprocessing": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    student_file.save(student_of("residual"), folder, facts)
    return folder


def test_a_run_folder_becomes_a_page(with_student: Path) -> None:
    """With the plan of its student, and the command that makes the run again."""
    text = Page(write_report(with_student).read_text()).text
    assert all(f" {name} " in text for name in ("stem.0", "middle.0.block.0", "head.fc"))
    assert "acq quantize resnet20-cifar10 --preset fast --bits w4a4" in text
    assert "--set seed=3" in text


def test_a_run_with_framing_is_made_again_with_it(with_student: Path) -> None:
    """The option has the resized side."""
    facts = json.loads((with_student / QUANTIZATION).read_text())["facts"]
    assert "--resize" not in Page(write_report(with_student).read_text()).text
    facts["preprocessing"]["framing"] = {"resize": 18, "interpolation": "bilinear"}
    change(with_student, QUANTIZATION, facts=facts)
    text = Page(write_report(with_student).read_text()).text
    assert "--input-size 3,16,16 --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --resize 18" in text


def test_a_run_of_a_network_that_takes_bytes_is_made_again_without_normalisation(with_student: Path) -> None:
    """Such a file normalises images itself, and the command refuses to."""
    facts = json.loads((with_student / QUANTIZATION).read_text())["facts"]
    facts["origin"]["form"] = {"kind": "uint8"}
    change(with_student, QUANTIZATION, facts=facts)
    text = Page(write_report(with_student).read_text()).text
    assert "--input-size 3,16,16" in text
    assert not any(option in text for option in ("--mean", "--std"))


@pytest.mark.parametrize("facts", [{}, {"origin": 3}, {"origin": {}, "config": {"bits": []}, "preprocessing": {}}])
def test_facts_that_make_no_command_are_damage(with_student: Path, facts: dict[str, Any]) -> None:
    """In one line."""
    change(with_student, QUANTIZATION, facts=facts)
    with pytest.raises(RequestError, match=r"is damaged|is not a mapping") as caught:
        write_report(with_student)
    assert "\n" not in str(caught.value)
