from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import acq, contents, of, quantize
from typer.core import TyperCommand, TyperGroup, TyperOption

from acq.cli import app
from acq.cli.app import exit_code
from acq.errors import Interrupted, RequestError, RunError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """The commands by name."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert isinstance(command, TyperCommand)
        yield name, command


def words(text: str) -> str:
    """Text without frames and line breaks."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def test_the_version_is_printed() -> None:
    """``--version`` gives that of the installed distribution."""
    assert acq("--version").out == f"acq {importlib.metadata.version('acquant')}\n"


@pytest.mark.parametrize("arguments", [["--help"], [], ["quantize", "--help"]])
def test_help_is_no_error(arguments: list[str]) -> None:
    """Help is given on request, and to whoever types the name alone."""
    assert "Usage" in acq(*arguments).text()


def test_commands_are_listed_in_the_order_of_work() -> None:
    """Quantizing comes first, then what is done with a run, then commands that only look."""
    assert [name for name, _ in commands()] == [
        "quantize", "evaluate", "predict", "export", "report", "compare", "benchmark", "inspect", "models", "settings",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_help_says_all_that_its_options_say(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text of every option is printed in full, brackets included, and no placeholder of a flag's type."""
    monkeypatch.setenv("COLUMNS", str(width))
    for name, command in commands():
        shown = acq(name, "--help").text()
        assert max(map(len, shown.splitlines())) <= width
        assert "<bool>" not in shown
        assert "{" not in shown
        folded = words(shown)
        assert words(command.help or "") in folded
        for option in command.params:
            assert words(str(getattr(option, "help", ""))) in folded, (name, option.name)


def test_help_gives_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option with a value says its default, unless nothing is its default or the network knows the value."""
    monkeypatch.setenv("COLUMNS", "1000")
    nothing = {"--checkpoint", "--model-args", "--exclude", "--config", "--set", "--data", "--limit", "--html"}
    known = {"--input-size", "--mean", "--std", "--outputs", "--output-kind"}
    for name, command in commands():
        lines = acq(name, "--help").text().splitlines()
        for option in command.params:
            if isinstance(option, TyperOption) and not option.is_flag and option.opts[0] not in nothing | known:
                (line,) = [line for line in lines if line.startswith(f"│ {option.opts[0]} ")]
                assert "default" in line


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("acq qu", "quantize"), ("acq quantize --bu", "--budget"), ("acq inspect resn", "resnet20-cifar10")],
)
def test_a_shell_completes(
    typed: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands, options and built-in networks are completed."""
    monkeypatch.setenv("_ACQ_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    with pytest.raises(SystemExit):
        typer.main.get_command(app).main(prog_name="acq")
    assert capsys.readouterr().out.split() == [offered]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("no such\nthing; give another"), 2, "error: no such thing; give another"),
        (RunError("it diverged; give a smaller rate"), 1, "failed: it diverged; give a smaller rate"),
        (Interrupted("stopped at student step 3"), 130, "stopped at student step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
    ],
)
def test_errors_are_a_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of error ends in its own exit code and one line on standard error."""

    def command() -> None:
        raise error

    assert exit_code(command) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    """What is neither the user's mistake nor a failed run is not turned into a line."""

    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code(command)


def test_of_several_processes_each_names_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of processes other than the main one say which process they are from."""
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)

    def command() -> None:
        raise RunError("it is gone")

    assert exit_code(command) == 1
    assert capsys.readouterr().err == "process 1 of 2: failed: it is gone\n"


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings of a command have no place in the code and no line break."""

    def facts() -> list[Any]:
        warnings.warn("one\n  thing", stacklevel=1)
        return []

    monkeypatch.setattr("acq.zoo.facts", facts)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert acq("models").err == "warning: one thing\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quantise"], "quantise"),
        (["quantize", "--out", "run"], "MODEL"),
        (quantize("--bitz", "w4a4"), "--bitz"),
        (quantize("--seed"), "--seed"),
        (quantize("--seed", "one"), "--seed"),
        (quantize("resnet20-cifar10"), "resnet20-cifar10"),
        (["evaluate", "resnet20-cifar10"], "--data"),
        (["benchmark", "run", "--seconds", "-1"], "--seconds"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_an_error(arguments: list[str], named: str) -> None:
    """Unknown commands and options, and missing values, are one line that names them."""
    answer = acq(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.notes) == 1
    assert answer.notes[0].startswith("error: ")
    assert named in answer.notes[0]


def test_the_command_itself_ends_with_its_code(folder: Path) -> None:
    """A process of its own prints one line and ends with code 2, even where torch fails to trace."""
    command = [sys.executable, "-m", "acq", *quantize(network=of("Undecided"))]
    before = contents(folder)
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line != "building"]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: the network's forward depends on the values of its images (tinynet.py, line")
    assert {path: text for path, text in contents(folder).items() if "__pycache__" not in str(path)} == before
