"""The command ``acq``: its help, exit codes, and warnings and errors as single lines."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from acq.core.processes import started_by_torchrun
from acq.errors import Interrupted, Note, RequestError, RunError

T = TypeVar("T")


class _Command(TyperCommand):
    """A command whose help leaves out that flags are ``<bool>`` and arguments have ``{braces}``."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types_of_flags(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class _Commands(TyperGroup):
    """A group with such help."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types_of_flags(super().get_params(ctx))


def _without_types_of_flags(parameters: list[T]) -> list[T]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="acq", cls=_Commands, rich_markup_mode="rich", pretty_exceptions_enable=False, no_args_is_help=True
)


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, with examples at the end of its help."""
    epilog = "\n".join(["Examples:", *examples]) if examples else None
    return app.command(cls=_Command, epilog=epilog)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"acq {version('acquant')}")
        raise typer.Exit


@app.callback()
def _acq(
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Quantize a trained image classifier to low-bit integers without its training data."""


def main() -> NoReturn:
    """Run the command. Exit codes: 0 done, 1 the run failed, 2 the request is wrong, 130 interrupted."""
    warnings.showwarning = _warn
    code = exit_code(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
    if not started_by_torchrun().is_main:
        # threads of gloo may still let go of tensors, which aborts a process whose interpreter has shut down
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command and turn its exceptions into one line on standard error and an exit code."""
    try:
        command()
    except typer.TyperException as error:
        return _fail(error.format_message(), 2)
    except RequestError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        return _fail(str(error) or "interrupted", 130)
    return 0


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning as one line without its place in the code; of several processes only the main one warns."""
    if started_by_torchrun().is_main:
        name = "note" if issubclass(category, Note) else "warning"
        print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    process = started_by_torchrun()
    who = "" if process.is_main else f"process {process.rank} of {process.size}: "
    kind = {1: "failed: ", 2: "error: "}.get(code, "")
    first, *rest = message.splitlines() or [""]
    code_lines = [line for line in rest if line.startswith("    ")]  # of a module that would help
    words = " ".join([first, *(line for line in rest if line not in code_lines)])
    print("\n".join([f"{who}{kind}{' '.join(words.split())}", *code_lines]), file=sys.stderr)
    return code
