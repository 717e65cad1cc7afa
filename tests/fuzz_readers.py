"""Coverage-guided fuzzing of the readers of files: ``python tests/fuzz_readers.py [READER ...] [--seconds 60]``.

It needs the extra ``fuzz``. Each reader runs in its own process, because libFuzzer ends it. Inputs that fail are kept
in ``build/fuzz``. The guidance sees only lines of Python, in this package and in the libraries named below; native code
gets random inputs.
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
GUIDED_BY = ["acq", "zipfile", "pickletools", "yaml"]


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one reader for some seconds; libFuzzer then ends the process."""
    import atheris

    with atheris.instrument_imports(include=GUIDED_BY):
        import test_fuzz

        from acq.errors import RequestError
    reader, folder = test_fuzz.READERS[name], Path(tempfile.mkdtemp())
    corpus = Path(tempfile.mkdtemp())
    (corpus / "valid").write_bytes(reader.prepare(folder))
    path = folder / reader.file
    warnings.simplefilter("ignore")

    def one(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(RequestError):
            reader.read(path)

    prefix = FOUND / name.replace(" ", "-")
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={prefix}-", "-rss_limit_mb=8000", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the given readers, or all, one after the other; return the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    if given.in_process:
        fuzz(given.readers[0], given.seconds)
    failed = 0
    for name in given.readers or names():
        command = [sys.executable, __file__, name, "--seconds", str(given.seconds), "--in-process"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        print(f"{name}: {runs.group(1) if runs else 'failed'}", flush=True)
        if done.returncode or not runs:
            failed += 1
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return failed


def names() -> list[str]:
    """Return the names of all readers."""
    import test_fuzz

    return list(test_fuzz.READERS)


if __name__ == "__main__":
    sys.exit(main())
