from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acq.errors import RequestError
from acq.report.comparison import render, rows_of


def run(folder: Path, name: str, **summary: Any) -> Path:
    (folder / name).mkdir()
    (folder / name / "summary.json").write_text(json.dumps(summary))
    return folder / name


def test_what_differs_comes_first(tmp_path: Path) -> None:
    """Nested figures are dotted; one that a run has not, or does not know, is empty."""
    one = run(tmp_path, "one", bits="w4a4", top1=None, seconds=3, attention={"spread": 0.2})
    other = run(tmp_path, "other", bits="w4a4", top1=90.5, attention={"spread": 0.3})
    rows = rows_of([one, other])
    assert rows[-1] == ("bits", ["w4a4", "w4a4"])
    assert dict(rows) == {
        "top1": ["", "90.5"],
        "seconds": ["3", ""],
        "attention.spread": ["0.2", "0.3"],
        "bits": ["w4a4", "w4a4"],
    }


def test_the_page_holds_the_table_escaped(tmp_path: Path) -> None:
    """And nothing that a browser would load or run."""
    runs = [run(tmp_path, name, model="<script>") for name in ("a", "b&c")]
    page = render(runs)
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "b&amp;c" in page
    assert "http" not in page.replace("http-equiv", "")


def test_one_run_is_not_compared(tmp_path: Path) -> None:
    """Nor one that is not finished."""
    one = run(tmp_path, "one", bits="w4a4")
    with pytest.raises(RequestError, match="at least two"):
        rows_of([one])
    with pytest.raises(RequestError, match="needs a finished run"):
        rows_of([one, tmp_path / "none"])
