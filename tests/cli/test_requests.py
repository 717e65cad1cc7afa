"""Wrong requests, one line each; what commands do with right ones is tested beside each command."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import NETWORK, SIZE, acq, of, quantize, refusal, weights
from PIL import Image

from acq.cli.requests import config_of, data_path, json_object
from acq.config import Config
from acq.errors import RequestError


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


@pytest.fixture
def traps(folder: Path) -> Path:
    """Files with which something is wrong."""
    torch.save(weights(width=6), folder / "wide.pt")
    (folder / "trap.pth").write_bytes(pickle.dumps({"weight": Trap()}))
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "wrong.yaml").write_text("generatr:\n  steps: 3\n")
    images = np.zeros((10, 16, 16, 3), np.uint8)
    np.savez(folder / "labels.npz", images=images, labels=np.arange(10))
    np.savez(folder / "grey.npz", images=np.zeros((5, 32, 32, 1), np.uint8), labels=np.arange(5))
    np.savez(folder / "cells.npz", images=np.zeros((5, 32, 32, 3), np.uint8), labels=np.zeros((5, 32, 32), int))
    for index in range(7):
        (folder / "many" / f"class{index}").mkdir(parents=True)
    for index in range(5):
        (folder / "pictures" / f"{index}").mkdir(parents=True)
        Image.fromarray(np.zeros((16, 20), np.uint16)).save(folder / "pictures" / f"{index}" / "a.png")
    return folder


WITHOUT_GENERATOR = ["--set", "generator.steps=0"]
WRONG: dict[str, tuple[list[str], str]] = {
    # the network
    "an unknown model": (quantize(network=["resnet20-cifr10"]), "did you mean 'resnet20-cifar10'?"),
    "an unknown module": (quantize(network=["tinynt:network", *SIZE]), "did you mean 'tinynet'?"),
    "an unknown callable": (quantize(network=["tinynet:netwrk", *SIZE]), "did you mean 'network'?"),
    "a callable without module": (quantize(network=[":network", *SIZE]), "names no module"),
    "a library's unknown model": (quantize(network=["torchvision:", *SIZE]), "torchvision"),
    "no input size": (quantize(network=["tinynet:network"]), "--input-size"),
    "half an input size": (quantize("--input-size", "3,16"), "--input-size"),
    "an input size in words": (quantize("--input-size", "3,big,16"), "--input-size"),
    "another input size": (quantize("--input-size", "3,20,20", network=of("of_one_size")), "3x20x20"),
    "another number of channels": (
        quantize("--input-size", "1,16,16", "--mean", "0.5", "--std", "0.5"), "does not take images of 1x16x16"
    ),
    "a mean without deviation": (quantize(network=[*NETWORK[:3], "--mean", "0.5,0.5,0.5"]), "--std"),
    "two means": (quantize("--mean", "0.5,0.5"), "--mean"),
    "a mean in bytes": (quantize("--mean", "128,128,128"), "divide"),
    "no deviation": (quantize("--std", "0,0.5,0.5"), "--std"),
    "arguments that are no JSON": (quantize("--model-args", "width=3"), "--model-args"),
    "arguments that are no object": (quantize("--model-args", "[3]"), "--model-args"),
    "arguments that are nested": (quantize("--model-args", "[" * 100_000), "--model-args is not JSON (it is nested"),
    "an unknown argument": (quantize("--model-args", '{"widht": 3}'), "did you mean 'width'?"),
    "a missing checkpoint": (quantize("--checkpoint", "none.pt"), "none.pt"),
    "a checkpoint of another network": (quantize("--checkpoint", "wide.pt"), "does not fit"),
    "a pickle of something else": (quantize("--checkpoint", "trap.pth"), "no code in it is run"),
    "a damaged checkpoint": (quantize("--checkpoint", "damaged.safetensors"), "damaged.safetensors"),
    "statistics without batch norms": (
        quantize(*WITHOUT_GENERATOR, "--set", "images.losses.statistics=1", network=of("without_norms")),
        "images.losses.statistics is 1",
    ),
    "a normalisation that is a guess": (
        quantize(*WITHOUT_GENERATOR, network=["tinynet:without_norms", *SIZE]),
        "Usual ones are: --mean 0,0,0 --std 1,1,1 (0 to 1)"
    ),
    "a generator without features": (
        quantize("--set", "generator.steps=10", network=of("without_space")), "a generator follows attention"
    ),
    "a generator for a map": (quantize(network=of("cells")), "a generator asks images for one answer each"),
    "a network with two paths": (quantize(network=of("Undecided")), "depends on the values of its images"),
    # the student
    "one bit": (quantize("--bits", "w1a4"), "bits out of range"),
    "nine bits": (quantize("--bits", "w4a9"), "bits out of range"),
    "bits in words": (quantize("--bits", "four"), "w4a4"),
    "first and last bits out of range": (quantize("--first-last-bits", "9"), "bits out of range: first_last_bits 9"),
    "first and last bits in words": (quantize("--first-last-bits", "all"), "'first_last_bits': give a bit-width"),
    "add bits out of range": (quantize("--add-bits", "1"), "bits out of range: add_bits 1"),
    "fewer add bits than activations": (quantize("--bits", "w4a8", "--add-bits", "4"), "below the activations' 8"),
    "a budget without auto": (quantize("--budget", "3"), "give --bits auto instead of w4a4"),
    "an unknown placement": (quantize("--placement", "everywhere"), "'auto', 'deployable', 'layers' or 'relu-only'"),
    "a layer that is not there": (quantize("--set", "layers.conv1=6"), "'conv1' matches no layer with weights"),
    "a pattern of no layer": (quantize("--set", "layers.head.*=6"), "'head.*' matches no layer with weights"),
    "an exclusion of no layer": (quantize("--exclude", "stem.*"), "the nearest names are: "),
    "a layer's bits out of range": (quantize("--set", "layers.0=9"), "bits out of range: layers.0 9"),
    "a layer's bits in words": (quantize("--set", "layers.0=all"), "'layers.0': give 2 to 8 bits, or float"),
    # settings
    "an unknown preset": (quantize("--preset", "fats"), "did you mean 'fast'?"),
    "an unknown setting": (quantize("--set", "student.step=3"), "did you mean 'steps'"),
    "a setting of a section that is no more": (quantize("--set", "pool.size=16"), "'pool' is not known"),
    "a setting without value": (quantize("--set", "student.steps"), "key=value"),
    "a setting out of range": (quantize("--set", "generator.batch=3"), "generator.batch"),
    "a setting that is no number": (quantize("--set", "student.steps=many"), "a valid integer or auto, got 'many'"),
    "an infinite rate": (quantize("--set", "student.learning_rate=.inf"), "finite"),
    "an unknown setting in a file": (quantize("--config", "wrong.yaml"), "did you mean 'generator'?"),
    "a missing configuration": (quantize("--config", "none.yaml"), "none.yaml"),
    "a configuration of words": (quantize("--config", "tinynet.py"), "tinynet.py"),
    "an unknown device": (quantize("--device", "tpu"), "'cpu'"),
    "a negative seed": (quantize("--seed", "-1"), "seed"),
    # the run
    "nothing to resume": (quantize("--resume"), "no run in run"),
    "resuming and overwriting": (quantize("--resume", "--overwrite"), "contradict"),
    "quiet and verbose": (quantize("--quiet", "--verbose"), "contradict"),
    "a folder of other files": (quantize("--out", "."), "holds other files"),
    "a file for a folder": (quantize("--out", "data.npz"), "is a file"),
    "a folder below a file": (quantize("--out", "data.npz/run"), "--out"),
    "a dry run of nothing to resume": (quantize("--dry-run", "--resume"), "no run in run"),
    "a dry run for an unknown engine": (
        quantize("--dry-run", "--engines", "openvinno", export=True), "did you mean 'openvino'?",
    ),
    "a run for an unknown engine": (quantize("--engines", "openvinno", export=True), "did you mean 'openvino'?"),
    "a dry run without its data": (quantize("--dry-run", "--data", "none.npz"), "no data at none.npz"),
    "a dry run into a file": (quantize("--dry-run", "--out", "data.npz"), "is a file"),
    # labelled images
    "no data": (quantize("--data", "none.npz"), "no data at none.npz"),
    "data of another kind": (quantize("--data", "tinynet.py"), "tinynet.py"),
    "labels out of range": (quantize("--data", "labels.npz"), "labels in labels.npz go from 0 to 9"),
    "images of other channels": (quantize("--data", "grey.npz"), "[5, 32, 32, 1] but the network takes [N, 16, 16, 3]"),
    "image files of 16 bits": (quantize("--data", "pictures"), "more than 8 bits per channel; save it with 8"),
    "images of another size whose labels have places": (
        quantize(*WITHOUT_GENERATOR, "--data", "cells.npz", network=of("cells")), "their labels have places"
    ),
    "pictures below the network's size": (quantize("--resize", "15"), "--resize is 15 but the network takes 16x16"),
    "a crop of another size": (quantize("--crop", "20"), "--crop is 20 but the network takes 16x16"),
    "a resized side in words": (quantize("--resize", "big"), "--resize"),
    "more folders than classes": (quantize("--data", "many"), "5 classes"),
    "a sample that there is not": (quantize("--data", "sample"), "no sample"),
}  # fmt: skip


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_in_a_line(name: str) -> None:
    """Exit code 2, one ``error:`` line that names the thing, and nothing on standard output or on disk."""
    arguments, words = WRONG[name]
    assert words in refusal(*arguments)


def test_resuming_needs_the_name_of_the_run(folder: Path) -> None:
    """The default folder is a new one, so there is nothing to resume in it."""
    assert "--resume needs the folder of the run; give --out" in refusal("quantize", *NETWORK, "--resume")


def test_settings_come_from_preset_file_assignments_and_options(folder: Path) -> None:
    """An option counts more than ``--set``, which counts more than the file, and that more than the preset."""
    (folder / "c.yaml").write_text("preset: fast\nbits: w3a3\nseed: 7\nstudent: {steps: 11, batch: 5}\n")
    config = config_of(None, Path("c.yaml"), ["student.steps=12"])
    assert (config.preset, config.bits, config.seed) == ("fast", "w3a3", 7)
    assert (config.student.steps, config.student.batch) == (12, 5)
    assert config.images == Config.create("fast").images
    config = config_of("best", Path("c.yaml"), ["seed=8"], seed=9, bits="w2a2")
    assert [config.seed, config.bits, config.preset] == [9, "w2a2", "best"]
    assert config.generator == Config.create("best").generator


def test_exclusions_are_layers_in_floating_point() -> None:
    """``--exclude`` is short for ``layers.PATTERN=float``, and may stand beside bits of other layers."""
    config = config_of(None, None, ["layers.a.b=6"], ["head.*", "stem"])
    assert config.layers == {"a.b": 6, "head.*": "float", "stem": "float"}


@pytest.mark.parametrize(("text", "value"), [("6", 6), ("same", "same")])
def test_bits_of_options_are_numbers_or_same(text: str, value: int | str) -> None:
    """``--first-last-bits`` and ``--add-bits`` give what the settings hold."""
    config = config_of(None, None, None, first_last_bits=text, add_bits=text)
    assert (config.first_last_bits, config.add_bits) == (value, value)


def test_a_sample_is_that_of_a_built_in_network() -> None:
    """``sample`` is a file that comes with some networks, and other text is a path."""
    assert data_path("sample", "resnet20-cifar10").exists()
    assert data_path("test.npz", "resnet20-cifar10") == Path("test.npz")
    with pytest.raises(RequestError, match="no sample is bundled with efficientnet-lite0"):
        data_path("sample", "efficientnet-lite0")


def test_arguments_are_a_json_object() -> None:
    """Keyword arguments of a callable are read from JSON."""
    assert json_object('{"width": 2, "names": ["a"]}') == {"width": 2, "names": ["a"]}


@pytest.mark.filterwarnings("default::acq.errors.Note")
def test_an_assumed_normalisation_is_noted(folder: Path) -> None:
    """Whoever gives no mean and deviation is told which are taken, and nothing else is noted."""
    answer = acq("inspect", "tinynet:network", *SIZE)
    assert answer.code == 0
    assert answer.notes == [
        "note: mean and std are not given, so ImageNet's are assumed: (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)"
    ]
    assert acq("inspect", *NETWORK).text()
