from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from acq.errors import RequestError
from acq.zoo import resolve

SIZE = (3, 16, 16)
CODE = """
from torch import nn

print("loading")

def network(classes=10, width: int = 4):
    print("building")
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, classes))

def broken():
    raise KeyError("first line\\nsecond line")

def confused():
    return len(3)

def number():
    return 3

constant = 5
ready = nn.Linear(2, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's code; its modules are removed from the interpreter afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").touch()
    (tmp_path / "mynets" / "small.py").write_text(CODE)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_callable_of_the_current_folder_is_called(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is importable, gets the arguments, prints to stderr, and ImageNet's normalisation is assumed."""
    network = resolve("mynets.small:network", arguments={"classes": 3}, input_size=SIZE)
    assert network.model(torch.zeros(2, *SIZE)).shape == (2, 3)
    assert network.preprocessing.mean == (0.485, 0.456, 0.406)
    assert not network.preprocessing_given
    assert not network.model.training
    said = capsys.readouterr()
    assert said.out == ""
    assert "building" in said.err


def test_a_ready_network_is_taken_as_it_is(folder: Path) -> None:
    """It needs no callable, and takes no arguments."""
    assert isinstance(resolve("mynets.small:ready", input_size=SIZE).model, nn.Linear)
    with pytest.raises(RequestError, match="takes no arguments"):
        resolve("mynets.small:ready", input_size=SIZE, arguments={"a": 1})


@pytest.mark.parametrize(
    ("model", "arguments", "fact"),
    [
        ("mynets.smal:network", {}, r"no module 'mynets.smal' \(did you mean 'mynets.small'\?\)"),
        ("mynet.small:network", {}, r"no module 'mynet' \(did you mean 'mynets'\?\)"),
        ("mynets.small:netwrk", {}, r"no 'netwrk' \(did you mean 'network'\?\)"),
        ("mynets.small:", {}, "has no ''"),
        ("mynets/small.py:network", {}, "no module 'mynets/small'"),
        (":network", {}, "names no module"),
        (".small:network", {}, "importing '.small' failed"),
        ("mynets.small:constant", {}, "is a int"),
        ("mynets.small:broken", {}, "failed: KeyError: 'first line"),
        ("mynets.small:confused", {}, r"failed: TypeError: object of type 'int' has no len"),
        ("mynets.small:number", {}, "returns a int, not an nn.Module"),
        ("mynets.small:network", {"clases": 3}, r"'clases' \(did you mean 'classes'\?\)"),
        ("wrong:network", {}, "importing 'wrong' failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("script:network", {}, "importing 'script' failed: SystemExit: 3"),
        ("typo:network", {}, "importing 'typo' failed: SyntaxError"),
    ],
)
def test_a_wrong_callable_is_refused(folder: Path, model: str, arguments: dict[str, Any], fact: str) -> None:
    """One line names the mistake; there is no traceback."""
    (folder / "wrong.py").write_text("import nowhere")
    (folder / "script.py").write_text("import sys; sys.exit(3)")
    (folder / "typo.py").write_text("def network(:")
    with pytest.raises(RequestError, match=fact) as caught:
        resolve(model, arguments=arguments, input_size=SIZE)
    assert "\n" not in str(caught.value)


WRAPPED = """
import torch
from torch import nn

class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.inner(x)

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 10))

def parallel():
    return nn.DataParallel(network())

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def program():
    batch = torch.export.Dim("batch")
    return torch.export.export(network(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))

def own():
    return program().module()

def scripted():
    return torch.jit.trace(network(), torch.zeros(1, 3, 16, 16))

ready = nn.DataParallel(network())
"""


@pytest.mark.parametrize("name", ["Frozen", "parallel", "lazy", "program", "own", "ready"])
@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_modules_are_taken_as_they_come(folder: Path, name: str, with_checkpoint: bool) -> None:
    """Wrappers, lazy layers, programs and an ``eval`` that returns nothing give a network, and take a checkpoint."""
    (folder / "wrapped.py").write_text(WRAPPED)
    prefix = "inner." if name == "Frozen" else ""
    state = {f"{prefix}1.weight": torch.randn(10, 768), f"{prefix}1.bias": torch.zeros(10)}
    torch.save(state, folder / "weights.pt")
    file = folder / "weights.pt" if with_checkpoint else None
    model = resolve(f"wrapped:{name}", checkpoint=file, input_size=SIZE).model
    scores = model(torch.ones(2, *SIZE))
    assert scores.shape == (2, 10)
    if with_checkpoint:
        torch.testing.assert_close(scores[0], state[f"{prefix}1.weight"].sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_no_network(folder: Path) -> None:
    """A builder that returns a TorchScript program is refused with the way out, not as a builder that fails."""
    (folder / "wrapped.py").write_text(WRAPPED)
    with pytest.raises(RequestError, match=r"^the network is a TorchScript program"):
        resolve("wrapped:scripted", input_size=SIZE)
