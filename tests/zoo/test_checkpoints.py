from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acq.errors import RequestError
from acq.zoo.checkpoints import apply_state, load_state


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def wrap(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_every_suffix_and_prefix_gives_the_same_weights(tmp_path: Path, suffix: str, prefix: str) -> None:
    """The loaded weights equal the saved ones, without the name parts that wrappers add."""
    state, path = network().state_dict(), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(wrap(state, prefix), path)
    assert same(load_state(path), state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
        lambda s: {"net": {"state_dict": wrap(s, "module.")}},
    ],
)
def test_nested_dictionaries_are_opened(tmp_path: Path, nest: Callable[[Any], Any]) -> None:
    """Checkpoints of a training give only their weights."""
    state, path = network().state_dict(), tmp_path / "checkpoint.pth"
    torch.save(nest(state), path)
    assert same(load_state(path), state)


def test_a_compiled_part_loses_its_prefix(tmp_path: Path) -> None:
    """``_orig_mod.`` is dropped inside a name too."""
    torch.save({"layer._orig_mod.weight": torch.zeros(2)}, tmp_path / "part.pt")
    assert list(load_state(tmp_path / "part.pt")) == ["layer.weight"]


def test_a_cuda_checkpoint_in_the_old_format_is_read(shared: Callable[[str], Path]) -> None:
    """The public ResNet-20 has the same weights as a pickle and as safetensors."""
    old, new = load_state(shared("resnet20-12fca82f.th")), load_state(shared("resnet20-cifar10.safetensors"))
    assert all(torch.equal(old[name], value) for name, value in new.items())


def module(path: Path) -> None:
    torch.save(network(), path)


def program(path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    torch.jit.trace(Twice(), torch.zeros(1)).save(str(path))


def cut(path: Path) -> None:
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "make", "fact"),
    [
        ("module.pt", module, "more than weights"),
        ("fraction.pt", lambda p: torch.save({"a": Fraction(1)}, p), "more than weights"),
        ("plain.pth", lambda p: p.write_bytes(pickle.dumps({"a": Fraction(1)})), "more than weights"),
        ("program.pt", program, "TorchScript"),
        ("cut.pt", cut, "damaged"),
        (
            "page.pth",
            lambda p: p.write_text("<html>not found</html>"),
            "more than weights, or none, and no code in it is run",
        ),
        ("page.safetensors", lambda p: p.write_text("<html>not found</html>"), "damaged"),
        ("empty.pt", lambda p: p.touch(), "is empty"),
        ("folder.pt", lambda p: p.mkdir(), "is a folder"),
        ("weights.h5", lambda p: p.touch(), "unknown suffix"),
        ("absent.pt", lambda p: None, "no checkpoint at"),
        ("list.pt", lambda p: torch.save([torch.zeros(1)], p), "no named tensors"),
        ("epoch.pt", lambda p: torch.save({"epoch": 3}, p), "no named tensors"),
        (
            "both.pt",
            lambda p: torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, p),
            "with and without",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path], Any], fact: str
) -> None:
    """One line names the file, the fact and the way out."""
    make(tmp_path / name)
    with pytest.raises(RequestError, match=fact) as caught:
        load_state(tmp_path / name)
    message = str(caught.value)
    assert name in message
    assert ";" in message
    assert "\n" not in message


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    """A checkpoint that calls a function on loading is refused before the call."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Touch()}, tmp_path / "evil.pt")
    with pytest.raises(RequestError, match="more than weights"):
        load_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_every_weight_is_applied() -> None:
    """The network's state equals the checkpoint's, also if the network itself is wrapped."""
    source, target = network(), network()
    apply_state(target, source.state_dict(), Path("x.pt"))
    assert same(target.state_dict(), source.state_dict())
    wrapped = nn.DataParallel(network())
    apply_state(wrapped, source.state_dict(), Path("x.pt"))
    assert same(wrapped.module.state_dict(), source.state_dict())


def test_num_batches_tracked_may_be_missing() -> None:
    """Old checkpoints lack it, and no evaluation reads it."""
    state = {name: value for name, value in network().state_dict().items() if "tracked" not in name}
    target = network()
    apply_state(target, state, Path("x.pt"))
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), "missing: 0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"0.bias": torch.zeros(9)}), r"wrongly shaped: 0.bias \[9\] instead of \[4\]"),
        (lambda s: s.update({f"head.{i}": torch.zeros(1) for i in range(7)}), "head.2 and 4 more"),
        (lambda s: s["1.running_var"].fill_(float("nan")), "'1.running_var' that are not finite"),
    ],
)
def test_a_misfit_names_the_weights_and_changes_nothing(change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    """A checkpoint is applied as a whole or not at all."""
    state, target = {name: value.clone() for name, value in network().state_dict().items()}, network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    change(state)
    with pytest.raises(RequestError, match=words):
        apply_state(target, state, Path("x.pt"))
    assert same(target.state_dict(), before)
