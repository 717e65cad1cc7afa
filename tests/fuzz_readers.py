"""Fuzzing of the readers of files that is guided by the lines they run: ``python tests/fuzz_readers.py [READER ...]
[--seconds 60]`` (extra ``fuzz``).

Each reader has a process of its own, which libFuzzer ends; what it finds is left in ``build/fuzz``. It sees lines of
Python alone, in this package and in the libraries named below: what native code does inside is steered by chance.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

FOUND = Path("build/fuzz")
SEEN = ["acq", "zipfile", "pickletools", "yaml"]


def fuzz(name: str, seconds: int) -> None:
    """Run one reader until the time is over; does not return."""
    import atheris

    with atheris.instrument_imports(include=SEEN):
        import test_fuzz

        from acq.errors import RequestError
    test_fuzz.FOLDER = Path(tempfile.mkdtemp())
    file, make, reader = test_fuzz.READERS[name]
    corpus = Path(tempfile.mkdtemp())
    (corpus / "whole").write_bytes(make())
    path = Path(tempfile.mkdtemp()) / file
    warnings.simplefilter("ignore")

    def one(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(RequestError):
            reader(path)

    prefix = FOUND / name.replace(" ", "-")
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={prefix}-", "-rss_limit_mb=8000", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz some readers or all, one after the other; the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    if given.alone:
        fuzz(given.readers[0], given.seconds)
    failed = 0
    for name in given.readers or names():
        command = [sys.executable, __file__, name, "--seconds", str(given.seconds), "--alone"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        print(f"{name}: {runs.group(1) if runs else 'failed'}", flush=True)
        if done.returncode or not runs:
            failed += 1
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return failed


def names() -> list[str]:
    """All readers."""
    import test_fuzz

    return list(test_fuzz.READERS)


if __name__ == "__main__":
    sys.exit(main())
