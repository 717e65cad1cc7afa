from __future__ import annotations

import argparse
import io
import os
import pickle
import shlex
import tarfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acq.errors import RequestError
from acq.zoo.checkpoints import WeightsWarning, apply_state, load_state

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def wrap(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(path: Path, key: str | None = None) -> State:
    """The state of a network with other weights, after the checkpoint is applied."""
    target = network(9)
    apply_state(target, load_state(path), path, key)
    return target.state_dict()


def loaded_quietly(content: Any, path: Path, key: str | None = None) -> State:
    torch.save(content, path)
    return loaded(path, key)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt", "a.bin", "a.pth.tar", "a.pkl", "a", "a.npz"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.module.", "model.", "module.model.", "backbone.x.y."]
)
def test_every_suffix_and_prefix_gives_the_same_weights(tmp_path: Path, name: str, prefix: str) -> None:
    """The kind of file is told by content, and a prefix that all names share is dropped."""
    state, path = network().state_dict(), tmp_path / name
    wrapped = wrap(state, prefix)
    if name.endswith("npz"):
        np.savez(path, **{name: value.numpy() for name, value in wrapped.items()})
    else:
        (save_file if name.endswith("safetensors") else torch.save)(wrapped, path)
    assert same(loaded(path), state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
        lambda s: {"net": {"state_dict": wrap(s, "module.")}},
        lambda s: {"any name": {"or": {"depth": s}}},
        lambda s: (3, s),
        lambda s: [{"epoch": 3}, {"weights": s}],
        lambda s: {"state_dict_ema": s},
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, data=Path("/data"))},
        lambda s: {"meta": {"best": np.float64(0.7)}, "state_dict": s},
        lambda s: {"model": {name: value.numpy() for name, value in s.items()}},
        lambda s: {"model": {name: value.numpy().astype(">f8") for name, value in s.items()}},
        lambda s: s | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
        lambda s: wrap(s, "module.") | {"n_averaged": torch.tensor(3)},
        lambda s: {name.replace("3.", "3._fsdp_wrapped_module."): value for name, value in s.items()},
        lambda s: {"generator": s, "discriminator": nn.Linear(3, 3).state_dict()},
        lambda s: {"optimizer": {"exp_avg": wrap(s, "")}, "model": s},
        lambda s: {"model": s, "best": {name: value.clone() for name, value in s.items()}},
    ],
)
def test_weights_are_found_in_any_nest(tmp_path: Path, nest: Callable[[State], Any]) -> None:
    """By what fits the network, so that no list of keys is needed."""
    state = network().state_dict()
    assert same(loaded_quietly(nest(state), tmp_path / "a.pth"), state)


@pytest.mark.parametrize(
    "whole",
    [
        lambda n: n,
        nn.DataParallel,
        lambda n: {"model": n, "epoch": 3},
        torch.optim.swa_utils.AveragedModel,
        lambda n: argparse.Namespace(model=n, path=Path("/x")),
    ],
)
def test_a_whole_module_gives_its_state_dict(tmp_path: Path, whole: Callable[[nn.Module], Any]) -> None:
    """Also with buffers that its state dict leaves out, and functions as attributes."""
    source = network()
    source.register_buffer("mask", torch.zeros(2), persistent=False)
    source.activation = nn.functional.relu  # type: ignore[assignment]
    assert same(loaded_quietly(whole(source), tmp_path / "a.pt"), source.state_dict())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_network_s(tmp_path: Path, kind: torch.dtype) -> None:
    """Values are rounded as torch does; counters stay integers."""
    state = network().state_dict()
    found = loaded_quietly(network().to(kind).state_dict(), tmp_path / "a.pt")
    assert all(torch.equal(found[name], value.to(kind).to(value.dtype)) for name, value in state.items())


@pytest.mark.parametrize(
    ("both", "raw"),
    [
        (lambda s, e: {"state_dict": s, "state_dict_ema": e}, "state_dict"),
        (lambda s, e: {"model": s, "model_ema": wrap(e, "module.")}, "model"),
        (lambda s, e: {"params": s, "params_ema": e}, "params"),
        (lambda s, e: wrap(s, "net.") | wrap(e, "ema_net.module."), "net"),
        (lambda s, e: {"state_dict": wrap(s, "model."), "callbacks": {"EMA": {"averaged": e}}}, "state_dict.model"),
        (lambda s, e: s | {"modelEMA": e}, ""),
    ],
)
def test_averaged_weights_are_taken_and_the_key_takes_the_raw(
    tmp_path: Path, both: Callable[[State, State], Any], raw: str
) -> None:
    """A warning says so, and names the key."""
    state, averaged, path = network(0).state_dict(), network(1).state_dict(), tmp_path / "a.pth"
    with pytest.warns(WeightsWarning, match=f"averaged are taken; --checkpoint-key {shlex.quote(raw)} takes the raw"):
        found = loaded_quietly(both(state, averaged), path)
    assert same(found, averaged)
    assert same(loaded(path, raw), state)


def test_other_weights_beside_the_network_s_are_named(tmp_path: Path) -> None:
    """In one state dict, such as those of a loss."""
    state = network().state_dict()
    with pytest.warns(WeightsWarning, match=r"under net; others beside them are left out: loss.weight"):
        assert same(loaded_quietly(wrap(state, "net.") | {"loss.weight": torch.ones(2)}, tmp_path / "a.pth"), state)


def test_several_weights_that_fit_are_refused_with_their_keys(tmp_path: Path) -> None:
    """The key chooses one, and a wrong key is answered with the right ones."""
    path, a, b = tmp_path / "a.pth", network(0).state_dict(), network(1).state_dict()
    torch.save({"student": a, "teacher": b}, path)
    with pytest.raises(RequestError, match="under student, teacher; choose with --checkpoint-key"):
        loaded(path)
    assert same(loaded(path, "teacher"), b)
    with pytest.raises(RequestError, match=r"under 'techer' \(did you mean 'teacher'\?\); give one of .* student, tea"):
        loaded(path, "techer")


def test_a_cuda_checkpoint_in_the_old_format_is_read(shared: Callable[[str], Path]) -> None:
    """The public ResNet-20 has the same weights as a pickle and as safetensors."""
    old, new = load_state(shared("resnet20-12fca82f.th")), load_state(shared("resnet20-cifar10.safetensors"))
    old_state = old["state_dict"]
    assert all(torch.equal(old_state[f"module.{name}"], value) for name, value in new[""].items())


def program(path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    torch.jit.trace(Twice(), torch.zeros(1)).save(str(path))


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),)), path)


def cut(path: Path) -> None:
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def old_module(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(network(), path, _use_new_zipfile_serialization=False)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "make", "fact"),
    [
        ("module.pt", old_module, "a whole module in the format before torch 1.6"),
        ("plain.pth", lambda p: p.write_bytes(pickle.dumps({"a": Fraction(1)})), "pickle protocol 4"),
        (
            "program.pt",
            program,
            r"TorchScript program, not weights; .*torch.jit.load\('.*program.pt'\).state_dict",
        ),
        ("program.pt2", exported, r"torch.export, not weights; .*torch.export.load\('.*program.pt2'\).state_dict,"),
        ("cut.pt", cut, "damaged"),
        ("page.pth", lambda p: p.write_text("<html>not found</html>"), "a page of HTML"),
        ("page.safetensors", lambda p: p.write_text("not found"), "no checkpoint"),
        ("model.safetensors.index.json", lambda p: p.write_text('{"weight_map": {}}'), "a checkpoint in parts"),
        ("pointer.pth", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        ("archive.pth.tar", tar, "a tar archive"),
        ("packed.tar.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08"), "gzip"),
        ("empty.pt", lambda p: p.touch(), "is empty"),
        ("folder.pt", lambda p: p.mkdir(), "is a folder"),
        ("weights.h5", lambda p: p.write_bytes(b"\x89HDF\r\n"), "HDF5"),
        ("absent.pt", lambda p: None, "no checkpoint at"),
        ("list.pt", lambda p: torch.save([torch.zeros(1)], p), "no named tensors"),
        ("epoch.pt", lambda p: torch.save({"epoch": 3}, p), "no named tensors"),
        ("optimizer.pt", lambda p: torch.save(torch.optim.Adam(network().parameters()).state_dict(), p), "no named"),
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
    """A checkpoint that calls a function on loading is refused before the call, and the message names the function."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": network().state_dict(), "args": Touch()}, tmp_path / "evil.pt")
    with pytest.raises(RequestError, match=r"names \w+.system, so it is refused and no code in it is run"):
        load_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_every_weight_is_applied_also_to_a_wrapped_network() -> None:
    """The names that wrappers of the network add do not matter."""
    source, wrapped = network(), nn.DataParallel(network(9))
    apply_state(wrapped, {"": source.state_dict()}, Path("x.pt"))
    assert same(wrapped.module.state_dict(), source.state_dict())


def test_num_batches_tracked_may_be_missing() -> None:
    """Old checkpoints lack it, and no evaluation reads it."""
    state = {name: value for name, value in network().state_dict().items() if "tracked" not in name}
    target = network(9)
    apply_state(target, {"": state}, Path("x.pt"))
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])


def rename(state: State, old: str, new: str) -> None:
    for name in list(state):
        state[name.replace(old, new)] = state.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), "missing: 0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"0.bias": torch.zeros(9)}), r"wrongly shaped: 0.bias \[9\] instead of \[4\]"),
        (lambda s: s.update({f"head.{i}": torch.zeros(1) for i in range(7)}), "head.2 and 4 more"),
        (lambda s: s["1.running_var"].fill_(float("nan")), "'1.running_var' that are not finite"),
        (
            lambda s: s.update({"3.weight": s["3.weight"].to(torch.int8)}),
            "3.weight torch.int8 instead",
        ),
        (
            lambda s: s.update({"module.0.bias": s["0.bias"], "_orig_mod.0.bias": s["0.bias"]}),
            "x.pt has both .*_orig_mod",
        ),
        (
            lambda s: [s.pop("1.running_mean"), s.pop("1.running_var")],
            "no buffers .*running_mean.*save state_dict",
        ),
        (lambda s: rename(s, "3.", "fc."), r"3.weight <- fc.weight.*state\['3.weight'\] = state.pop\('fc.weight'\)"),
        (lambda s: rename(s, ".", ".x."), r"\(0.weight <- 0.x.weight, 0.bias <- 0.x.bias.* and 5 more\)"),
    ],
)
def test_a_misfit_names_the_weights_and_changes_nothing(change: Callable[[State], Any], words: str) -> None:
    """A checkpoint is applied as a whole or not at all."""
    state, target = {name: value.clone() for name, value in network().state_dict().items()}, network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    change(state)
    with pytest.raises(RequestError, match=words):
        apply_state(target, {"": state}, Path("x.pt"))
    assert same(target.state_dict(), before)
