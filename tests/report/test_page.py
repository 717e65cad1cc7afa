from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SIZE, network
from PIL import Image
from test_recipe import SETTINGS, quick

from acq.api import report
from acq.config import Config
from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.recipe import Request, run
from acq.report.page import render
from acq.runs import student_file as artifact

HOSTILE = "<script>alert('m')</script>"


class Page(HTMLParser):
    """What a browser would load and what it would read out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network with a hostile name."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        request = Request(network("residual"), preprocessing, Config.create("default", SETTINGS), {"model": HOSTILE})
        run(request, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def page_of(folder: Path) -> str:
    return render(folder, artifact.load_plan(folder).rows(), "acq quantize <mine>")


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


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
    assert len(text) < 5e6


def test_what_comes_from_the_run_is_escaped(folder: Path) -> None:
    """A network's name is text, wherever it is shown."""
    page = Page(page_of(folder))
    assert HOSTILE in page.text
    assert "acq quantize <mine>" in page.text


def test_every_picture_says_what_it_shows(folder: Path) -> None:
    """A drawing is either named or part of something that is; nothing else has a role of a picture."""
    page = Page(page_of(folder))
    named = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(named) > 10
    assert all((attributes.get("aria-label") or "").strip() for attributes in named)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or a.get("role") == "img" for a in drawings)
    for _, attributes in page.tags:
        if "scroll" in (attributes.get("class") or ""):  # a keyboard must reach what scrolls
            assert attributes["tabindex"] == "0"


def test_figures_are_those_of_the_run(folder: Path) -> None:
    """The headline, the costliest layer and every operator of the plan."""
    page, summary = Page(page_of(folder)), json.loads((folder / "summary.json").read_text())
    assert f"{summary['agreement']:.2f} %" in page.text
    layers = json.loads((folder / "insight.json").read_text())["layers"]
    worst = min(layers, key=lambda row: row["logits_db"])
    assert page.text.index(f" {worst['layer']} ") > 0
    for row in artifact.load_plan(folder).rows():
        assert row["node"] in page.text
    assert f"{worst['logits_db']:.1f}" in page.text


@pytest.mark.parametrize(
    ("values", "words", "there"),
    [
        ({"top1": None}, "accuracy is not known", True),
        ({"top1": 80.0, "teacher_top1": 81.5, "images": 20}, "accuracy is not known", False),
        ({"top1": 80.0, "teacher_top1": 81.5, "images": 20}, "80.00 % top-1 on 20 real images, 1.50 lost", True),
        ({"placement": "relu-only"}, "the literature's, for comparison", True),
        ({"floating": 3}, "3 operators stay in floating point; the plan", True),
        ({"addends": "same"}, "where they are added", False),
        ({"addends": 8}, "8 bits where they are added", True),
        ({"student_loss": {"calibrated": 0.2, "trained": 5.0, "kept": "calibrated"}}, "loss 5.0 after 0.2", True),
        ({"student_loss": {"calibrated": 0.2, "trained": 0.1, "kept": "trained"}}, "were in vain", False),
        ({"student_loss": {"calibrated": 0.2, "trained": None, "kept": "calibrated"}}, "were in vain", False),
    ],
)
def test_caveats_are_those_that_apply(folder: Path, values: dict[str, Any], words: str, there: bool) -> None:
    """Said where they do, left out where they do not."""
    changed(folder, "summary.json", **values)
    text = Page(page_of(folder)).text
    # a description list's figure is written after what it is of
    assert (words in text or all(part in text for part in words.split(" % ", 1))) == there


def test_an_unripe_generator_is_told(folder: Path) -> None:
    """Its own images then say little of the student."""
    attention = json.loads((folder / "summary.json").read_text())["attention"]
    for share, there in ((0.5, True), (0.95, False)):
        changed(folder, "summary.json", attention=attention | {"label_agreement": share})
        assert ("is not ripe" in Page(page_of(folder)).text) == there


def test_relief_is_a_setting_that_the_run_would_take(folder: Path) -> None:
    """Of the costliest layer whose weights can be finer by a bit."""
    text = Page(page_of(folder)).text
    line = text[text.index("--set layers.") :].split()[1]
    name, bits = line.removeprefix("layers.").split("=")
    widths = {site["node"]: site["weight_bits"] for site in artifact.load_plan(folder).rows()}
    assert int(bits) == widths[name] + 1


@pytest.mark.parametrize("content", ["{", "[1]", '{"latencies": [{}]}', "null"])
def test_damaged_latencies_are_told_with_what_makes_them(folder: Path, content: str) -> None:
    """The run itself is whole."""
    (folder / "latency.json").write_text(content)
    with pytest.raises(RequestError, match=r"latency\.json is damaged; run acq benchmark again"):
        page_of(folder)


@pytest.mark.parametrize("name", ["summary.json", "insight.json"])
def test_a_run_that_is_not_finished_has_no_page(folder: Path, name: str) -> None:
    """What is missing is named."""
    (folder / name).unlink()
    with pytest.raises(RequestError, match=rf"{name}; a report needs a finished run"):
        page_of(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[1]"),
        ("insight.json", '{"layers": []}'),
        ("metrics.jsonl", "no JSON"),
        ("config.yaml", "config: [1"),
        ("samples/000.png", "no picture"),
        ("samples/samples.json", "[{}]"),
        ("insight.json", "[" * 10**5),
        ("summary.json", '{"top1": {}}'),
        ("config.yaml", "config: &a [*a]"),
    ],
)
def test_a_damaged_run_is_told(folder: Path, name: str, content: str) -> None:
    """In one line."""
    (folder / name).write_text(content)
    with pytest.raises(RequestError, match="damaged") as caught:
        page_of(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("facts", [{}, {"origin": 3}, {"origin": {}, "config": {"bits": []}, "preprocessing": {}}])
def test_facts_that_make_no_command_are_told(folder: Path, facts: dict[str, Any]) -> None:
    """In one line."""
    changed(folder, artifact.DOCUMENT, facts=facts)
    with pytest.raises(RequestError, match=r"is damaged|is no mapping") as caught:
        report(folder)
    assert "\n" not in str(caught.value)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real one, where the extra ``browser`` and a Chromium are installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here to look at the page")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [
        (360, "light", "screen"),
        (360, "dark", "screen"),
        (1280, "light", "screen"),
        (1280, "dark", "screen"),
        (794, "light", "print"),  # a sheet of A4
    ],
)
def test_a_browser_shows_it(browser: Any, made: Path, tmp_path: Path, width: int, scheme: str, media: str) -> None:
    """The real page, drawn: no word on the console, no request, nothing wider than the screen, text and pictures from
    edge to edge, and nothing that axe-core finds wanting."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
    file = tmp_path / "page.html"
    file.write_text(page_of(made))
    page = browser.new_page(viewport={"width": width, "height": 1200}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.emulate_media(media=media, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert not found, [(rule["id"], rule["impact"], rule["nodes"][0]["html"][:200]) for rule in found]
    page.screenshot(path=tmp_path / "shot.png")
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[2, 2].mean() < 128) == (scheme == "dark")
    drawn = (np.abs(pixels.astype(int) - pixels[2, 2]).sum(2) > 60).any(0).nonzero()[0]
    assert drawn.min() < width * 0.15
    assert width * 0.8 < drawn.max() < width - 4  # nothing is cut off at the right
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # pictures, not text alone


def test_a_keyboard_reaches_all_that_can_be_used(browser: Any, made: Path, tmp_path: Path) -> None:
    """Tab goes through every link, fold and scrolling table, and the place where it is can be seen."""
    file = tmp_path / "page.html"
    file.write_text(page_of(made))
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    usable = page.evaluate("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
    reached = set()
    for _ in range(usable + 2):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    page.close()
    assert len([element for element in reached if not element.startswith("<body")]) >= usable > 0
