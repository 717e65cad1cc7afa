"""A part imports only what stands before it in the flow, and Config ends where the recipe begins."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "acq"
# fmt: off
ORDER = [
    "errors", "intake", "tensors", "flow", "trace", "attention", "moments", "processes", "teacher", "condition",
    "generators", "losses",
    "scenes", "augment", "refinement", "distillation", "quantizers", "plan", "student", "calibration", "equalization",
    "rounding", "freezing",
    "artifact", "evaluate", "allocation", "sensitivity", "review", "insight", "pool", "soundness", "fidelity",
    "trainer",
    "estimate", "checkpoint", "folder", "interrupt", "memory", "data", "export", "report", "tensorboard", "summary",
    "zoo", "config", "recipe", "progress", "api", "cli",
]
# fmt: on
EXEMPT = {"__init__", "__main__"}
SEE_CONFIG = {"config", "recipe", "api", "cli", "__init__"}


def module_of(file: Path) -> str:
    """``zoo`` for src/acq/zoo/resnet.py, ``flow`` for src/acq/flow.py."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(source: str, package: list[str]) -> Iterator[str]:
    """Modules of ``acq`` that a source imports, anywhere in it; ``acq`` for the package's public names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"acq.{alias.name}" for alias in node.names] if stem == "acq" else [stem]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "acq":
                yield parts[1] if len(parts) > 1 and parts[1] in ORDER else "acq"


def faults(module: str, names: Iterator[str]) -> list[str]:
    """What is wrong with a module's imports, in words."""
    found = []
    for name in names:
        place = ORDER.index(name) if name in ORDER else ORDER.index("cli")
        if module not in EXEMPT and place > ORDER.index(module):
            found.append(f"{module} imports {name}, which stands after it")
        if name == "config" and module not in SEE_CONFIG:
            found.append(f"{module} imports config")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_flow(file: Path) -> None:
    """No module imports a later one, and only the recipe and its two doors, library and commands, see Config."""
    module = module_of(file)
    assert module in ORDER or module in EXEMPT, f"{module} has no place in the order of modules"
    package = ["acq", *file.relative_to(PACKAGE).parts[:-1]]
    assert not faults(module, imported(file.read_text(), package))


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("flow", "from acq.trace import trace", "flow imports trace, which stands after it"),
        ("trace", "def f():\n    from acq import student", "trace imports student, which stands after it"),
        ("losses", "from .quantizers import x", "losses imports quantizers, which stands after it"),
        ("zoo", "from .. import cli", "zoo imports cli, which stands after it"),
        ("pool", "import acq", "pool imports acq, which stands after it"),
        ("scenes", "from acq import refinement", "scenes imports refinement, which stands after it"),
        ("progress", "from acq.config import Config", "progress imports config"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, fault: str) -> None:
    """Late, relative and whole-package imports are all seen."""
    package = ["acq", "zoo"] if module == "zoo" else ["acq"]
    assert faults(module, imported(source, package)) == [fault]


def test_a_right_import_is_accepted() -> None:
    """Earlier modules, siblings in a package and other packages may be imported."""
    source = "import torch\nfrom acq.errors import RequestError\nfrom .resnet import resnet20"
    assert not faults("zoo", imported(source, ["acq", "zoo"]))
