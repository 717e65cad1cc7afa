"""The command line: what the user typed becomes a request, and the result becomes text or JSON."""

from acq.cli.main import main

__all__ = ["main"]
