"""The command line: what the user types becomes a request, and results become text or JSON."""

from acq.cli import evaluate, look, quantize, runs  # noqa: F401  # each registers its commands
from acq.cli.app import app, main

__all__ = ["app", "main"]
