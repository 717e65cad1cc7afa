from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from acq.report import figures

CENTRES = [{"label": k % 2, "requested": [k / 10, -k / 10], "realised": [k / 12, -k / 9]} for k in range(8)]
NORMS = [{"layer": f"norm{k}", "mean": 0.1 * k, "deviation": 0.2} for k in range(3)]
RECORDS = [{"step": k, "values": {"centre": 1 / k, "<b>$\\frac$": 2 / k, "never": 0.0}} for k in range(1, 5)]
DRAWN: dict[str, Callable[[], str]] = {
    "scatter": lambda: figures.scatter(CENTRES),
    "spreads": lambda: figures.spreads({str(k): 0.1 for k in range(50)}),
    "statistics": lambda: figures.statistics(NORMS),
    "curves": lambda: figures.curves(RECORDS, "student"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_svg_in_the_page_s_colours(name: str) -> None:
    """Well formed, without black or white of their own, scaled by the page, and the same twice."""
    text = DRAWN[name]()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" or root.tag == "svg"
    assert "width" not in root.attrib
    assert "currentColor" in text
    assert "#000000" not in text
    assert "#ffffff" not in text
    assert DRAWN[name]() == text


def test_points_are_where_the_centres_are() -> None:
    """As many as there are centres, on either side."""
    text = figures.scatter(CENTRES)
    assert text.count("<use ") >= 2 * len(CENTRES)


def test_names_are_text() -> None:
    """A loss's name is shown and is neither markup nor a formula; one that is never above zero has no line."""
    text = figures.curves(RECORDS, "student")
    assert "&lt;b&gt;$\\frac$" in text
    assert "<b>" not in text
    assert "never" not in text


def test_losses_that_are_all_zero_leave_an_empty_plot() -> None:
    """Without a legend."""
    assert "never" not in figures.curves([{"step": 1, "values": {"never": 0.0}}], "student")


def test_several_fit_on_a_page() -> None:
    """No identifier of one is an identifier of another, and each refers to its own."""
    parts = {name: set(re.findall(r'\bid="([^"]*)"', draw())) for name, draw in DRAWN.items()}
    for one, other in itertools.combinations(parts.values(), 2):
        assert not one & other
    for name, draw in DRAWN.items():
        assert set(re.findall(r"url\(#([^)]*)\)", draw())) <= parts[name]
