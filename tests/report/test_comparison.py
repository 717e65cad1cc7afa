from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acq.errors import RequestError
from acq.report.comparison import render, rows_of

SHARED = {"bits": "w4a4", "placement": "deployable", "preset": "fast", "seed": 0, "seconds": 3, "quantized_bytes": 9}


def run(folder: Path, name: str, **summary: Any) -> Path:
    (folder / name).mkdir()
    (folder / name / "summary.json").write_text(json.dumps(SHARED | summary))
    return folder / name


def test_what_differs_comes_first(tmp_path: Path) -> None:
    """Nested figures have dots; one that a run has not, or does not know, is empty."""
    one = run(tmp_path, "one", top1=None, attention={"spread": 0.2})
    other = run(tmp_path, "other", top1=90.5, attention={"spread": 0.3}, threads=2)
    rows = rows_of([one, other])
    assert rows[:3] == [("top1", ["", "90.5"]), ("attention.spread", ["0.2", "0.3"]), ("threads", ["", "2"])]
    assert rows[3:] == [(name, [str(value)] * 2) for name, value in SHARED.items()]


def test_the_page_holds_the_table_escaped(tmp_path: Path) -> None:
    """And nothing that a browser would load or run."""
    runs = [run(tmp_path, name, model="<script>") for name in ("a", "b&c")]
    page = render([run.name for run in runs], rows_of(runs))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "b&amp;c" in page
    assert "http" not in page.replace("http-equiv", "")


def test_one_run_is_not_compared(tmp_path: Path) -> None:
    """Nor one that is missing, not finished or damaged."""
    one = run(tmp_path, "one")
    with pytest.raises(RequestError, match="at least two"):
        rows_of([one])
    with pytest.raises(RequestError, match=r"there is no run folder .*none"):
        rows_of([one, tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"there is no finished run in .*empty"):
        rows_of([one, tmp_path / "empty"])
    (one / "summary.json").write_text('{"bits": "w4a4"}')
    with pytest.raises(RequestError, match=r"is damaged \(it has no placement\)"):
        rows_of([one, one])
