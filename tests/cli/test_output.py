from __future__ import annotations

import json

import pytest

from acq.cli.output import note, print_json, print_lines, print_table, shortened


def test_json_is_one_line_of_short_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Floats have at most six digits, at any depth, and whole numbers and text stay."""
    value = {"a": 1 / 3, "b": [2 / 3, {"c": 1e-7 / 3}], "d": (1, "x"), "e": 123456789, "f": None, "g": True}
    print_json(value)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    expected = {"a": 0.333333, "b": [0.666667, {"c": 3.33333e-08}], "d": [1, "x"], "e": 123456789, "f": None, "g": True}
    assert json.loads(out) == expected
    assert shortened({"inner": 0.1 + 0.2}) == {"inner": 0.3}


def test_a_table_in_a_file_is_as_wide_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal no cell is folded or cut, whatever the number of columns."""
    names = [f"runs/a-rather-long-name-of-a-run-{index}" for index in range(12)]
    print_table(["", *names], [["top1", *(f"{index}.5" for index in range(12))]])
    title, row = capsys.readouterr().out.splitlines()
    assert title.split() == names
    assert row.split() == ["top1", *(f"{index}.5" for index in range(12))]


def test_a_table_aligns_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns from ``numbers_from`` on end at the same place, and a table without titles has no line for them."""
    print_table(["", ""], [["small", "1"], ["large", "1000"]], numbers_from=1)
    assert capsys.readouterr().out.splitlines() == ["small     1", "large  1000"]


def test_cells_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in cells, lines and notes are printed as they are."""
    print_table(["[bold]title"], [["[red]cell[/red]"]])
    print_lines(["[i]line"])
    note("see acquant[onnx] and [/b]")
    out, err = capsys.readouterr()
    assert [line.rstrip() for line in out.splitlines()] == ["[bold]title", "[red]cell[/red]", "[i]line"]
    assert err == "note: see acquant[onnx] and [/b]\n"


def test_a_note_is_one_line_and_quiet_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Notes go to standard error and are not wrapped."""
    note("word " * 60)
    note("not this one", quiet=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["note: " + "word " * 60]
