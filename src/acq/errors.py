"""Errors that the command line shows as one line, and the helpers that word them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_NAMES = 3  # in a message
_SUGGESTIONS = 3
_NAME_LENGTH = 60  # characters of a name from a file
_LINE_LENGTH = 200  # characters of another library's message


class Note(UserWarning):
    """What was done and why. The command shows it as a note, because nothing is wrong."""


class RequestError(Exception):
    """The request cannot be carried out (exit code 2).

    The message is one line: the fact, then the way out.
    """


class RunError(Exception):
    """The run failed although the request was valid (exit code 1).

    The message is one line: what happened, then how to continue.
    """


class Interrupted(Exception):
    """The user stopped the run; its state is saved (exit code 130).

    The message says how to continue.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with up to three known names close to ``name``, closest first.

    Returns:
        Text to append to a message, such as `` (did you mean 'x' or 'y'?)``; empty if no name is close.
    """
    close = [repr(match) for match in get_close_matches(name, list(known), n=_SUGGESTIONS)]
    if not close:
        return ""
    return f" (did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?)"


def short(name: str) -> str:
    """Return a name from a file for a message, in quotes, at most 60 characters of it."""
    return repr(name[:_NAME_LENGTH])


def listed(names: Iterable[str], shown: int = _NAMES) -> str:
    """Return the first ``shown`` names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def first_line(error: BaseException, *, typed: bool = False) -> str:
    """Return the first line of an exception's message, at most 200 characters.

    Args:
        error: The exception.
        typed: Put the exception's type in front, for errors whose message alone is unclear: ``KeyError: 'a'``.

    Returns:
        The line; only the type's name if the exception has no message.
    """
    kind, message = type(error).__name__, str(error).strip()
    if not message:
        return kind
    line = message.splitlines()[0][:_LINE_LENGTH]
    return f"{kind}: {line}" if typed else line
