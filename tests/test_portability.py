from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
for name in ("resource", "fcntl"):
    sys.modules[name] = None
import acq, acq.cli
"""


def test_acq_is_imported_without_the_modules_of_unix() -> None:
    """Windows has neither ``resource`` nor ``fcntl``; package and command line need neither."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
