"""The ways in which a request ends early."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RequestError(Exception):
    """What was asked for cannot be done; the message is one line with the fact and the way out (exit code 2)."""


class RunError(Exception):
    """The run failed for a cause that no other request would mend; the message is one line with what happened and how
    to go on (exit code 1)."""


class Interrupted(Exception):
    """The run was told to stop; its state is saved and the message says how to go on (exit code 130)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 200 characters, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
