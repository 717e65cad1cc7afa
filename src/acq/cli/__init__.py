"""The command line: what the user types becomes a request, and results become text or JSON.

Each module registers its commands. The help lists them in the order of these imports.
"""

from acq.cli import quantize  # noqa: F401

# isort: split
from acq.cli import evaluate  # noqa: F401

# isort: split
from acq.cli import predict  # noqa: F401

# isort: split
from acq.cli import runs  # noqa: F401

# isort: split
from acq.cli import look  # noqa: F401
from acq.cli.app import app, main

__all__ = ["app", "main"]
