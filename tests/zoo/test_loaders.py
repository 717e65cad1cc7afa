from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
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


def libraries(monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Stand-ins for torchvision and timm; returns the keyword arguments of their calls."""
    calls: list[dict[str, Any]] = []

    def make(**arguments: Any) -> nn.Module:
        calls.append(arguments)
        model = nn.Linear(2, 2)
        model.pretrained_cfg = cfg
        return model

    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["resnet18", "resnet50"]  # type: ignore[attr-defined]
    models.get_model = make  # type: ignore[attr-defined]
    timm = ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "vgg11"]  # type: ignore[attr-defined]
    timm.create_model = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


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


def test_torchvision_and_timm_load_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do so without a checkpoint; the user's arguments take precedence."""
    calls = libraries(monkeypatch)
    resolve("torchvision:resnet18", input_size=SIZE)
    resolve("torchvision:resnet18", input_size=SIZE, arguments={"weights": None, "num_classes": 5})
    resolve("timm:vgg11", input_size=SIZE)
    resolve("timm:resnet18.a1_in1k", input_size=SIZE)
    assert calls == [
        {"name": "resnet18", "weights": "DEFAULT"},
        {"name": "resnet18", "weights": None, "num_classes": 5},
        {"model_name": "vgg11", "pretrained": True},
        {"model_name": "resnet18.a1_in1k", "pretrained": True},
    ]


def test_a_checkpoint_replaces_a_library_s_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library's own weights are not downloaded."""
    calls = libraries(monkeypatch)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    for model in ("torchvision:resnet18", "timm:vgg11"):
        resolve(model, input_size=SIZE, checkpoint=tmp_path / "w.pt")
    assert [call.get("weights", call.get("pretrained")) for call in calls] == [None, False]


def test_timm_s_weights_set_the_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their input size, mean and std are used, but not for other weights."""
    libraries(monkeypatch, {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    network = resolve("timm:vgg11")
    assert network.preprocessing.input_size == (3, 64, 64)
    assert network.preprocessing.mean == (0.5,) * 3
    assert network.preprocessing_given
    with pytest.raises(RequestError, match="--input-size"):
        resolve("timm:vgg11", arguments={"pretrained": False})


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_an_unknown_network_of_a_library_gives_a_hint(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """The name is checked before anything is built."""
    libraries(monkeypatch)
    with pytest.raises(RequestError, match=r"did you mean 'resnet18'"):
        resolve(f"{library}:resnet81", input_size=SIZE)


class Finder:
    """Makes the import of a package raise, like a package that was built for another torch."""

    def __init__(self, package: str, error: Exception) -> None:
        self.package, self.error = package, error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise self.error


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (
            lambda name: ModuleNotFoundError(f"No module named '{name}'", name=name),
            "is not installed; install it with pip install",
        ),
        (
            lambda name: ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            "cannot be imported: .*'yaml'",
        ),
        (
            lambda name: RuntimeError("operator torchvision::nms does not exist"),
            "cannot be imported: RuntimeError",
        ),
    ],
)
def test_a_library_that_cannot_be_imported_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, library: str, make: Callable[[str], Exception], fact: str
) -> None:
    """It is absent, incomplete or built for another torch."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(library, make(library)), *sys.meta_path])
    with pytest.raises(RequestError, match=fact):
        resolve(f"{library}:resnet18", input_size=SIZE)
