"""The page as a browser shows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.made_run import PLAN, add_latencies, make_run

from acq.report.page import render

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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The page as a file."""
    folder = make_run(tmp_path / "run")
    add_latencies(folder)
    (folder / "report.html").write_text(render(folder, PLAN, "acq quantize <mine>"))
    return folder / "report.html"


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
def test_a_browser_shows_it(browser: Any, file: Path, tmp_path: Path, width: int, scheme: str, media: str) -> None:
    """No word on the console, no request, nothing wider than the screen, text and pictures from edge to edge, and
    nothing that axe-core finds wanting."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
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
    assert width * 0.8 < drawn.max() < width - 4  # nothing is cut off at the right
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # pictures, not text alone


def test_a_keyboard_reaches_all_that_can_be_used(browser: Any, file: Path) -> None:
    """Tab goes through every fold and scrolling table, and shows where it is."""
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


def test_folded_tables_are_printed(browser: Any, file: Path) -> None:
    """Paper cannot be unfolded."""
    page = browser.new_page()
    page.goto(file.as_uri())
    height = "document.querySelector('details:has(table)').offsetHeight"  # asking for it lays the page out
    folded = page.evaluate(height)
    page.emulate_media(media="print")
    assert page.evaluate(height) > 2 * folded
    page.close()
