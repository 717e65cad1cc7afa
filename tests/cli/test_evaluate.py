from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import NETWORK, SIZE, acq, of, refusal, weights

from acq.core.accuracies import margin, plus_minus

DATA = ["--data", "data.npz"]


def test_a_run_and_its_network_get_the_reported_accuracy(run: Path) -> None:
    """The student in the folder and the network have the top-1 that the run's summary reports."""
    summary = json.loads((run / "summary.json").read_text())
    student, teacher = (acq("evaluate", *target, *DATA, "--json").json() for target in (["run"], NETWORK))
    assert (student["top1"], teacher["top1"]) == (summary["top1"], summary["teacher_top1"])
    points = student.pop("margin")
    assert student == {"target": "run", "data": "data.npz", "test_images": 10, "top1": summary["top1"]}
    assert points == pytest.approx(margin(summary["top1"], 10), rel=1e-5)


def test_the_result_is_one_line_on_standard_output(run: Path) -> None:
    """Nothing is on standard error, so a result can be kept in a file."""
    top1 = json.loads((run / "summary.json").read_text())["top1"]
    interval = plus_minus(margin(top1, 10))
    assert acq("evaluate", "run", *DATA).text() == f"top-1  {top1:.2f} %{interval}  (10 images)\n"


def test_top5_is_beside_top1_where_there_are_many_classes(folder: Path) -> None:
    """Each with its interval. Of 20 classes, one of five guesses is right in a quarter of the images."""
    network = [*NETWORK, "--model-args", '{"classes": 20}']
    rng = np.random.default_rng(0)
    np.savez("many.npz", images=rng.integers(0, 256, (40, 16, 16, 3), np.uint8), labels=np.arange(40) % 20)
    found = acq("evaluate", *network, "--data", "many.npz", "--json").json()
    top1, top5 = found["top1"], found["top5"]
    assert found["margin"] == pytest.approx(margin(top1, 40), abs=0.01)
    assert 0 < top1 < top5 < 100
    line = acq("evaluate", *network, "--data", "many.npz").text()
    shown = [f"top-{k}  {share:.2f} % ± {margin(share, 40):.2f}" for k, share in ((1, top1), (5, top5))]
    assert line == f"{', '.join(shown)}  (40 images)\n"


def test_a_limit_takes_the_first_images(run: Path) -> None:
    """The accuracy is that on the first images alone."""
    with np.load("data.npz") as archive:
        np.savez("first.npz", **{name: archive[name][:4] for name in archive})
    limited = acq("evaluate", "run", *DATA, "--limit", "4", "--json").json()
    first = acq("evaluate", "run", "--data", "first.npz", "--json").json()
    assert (limited["test_images"], limited["top1"]) == (4, first["top1"])


def test_a_checkpoint_and_arguments_reach_the_network(folder: Path) -> None:
    """A callable's own arguments and weights are those that are evaluated."""
    state = weights(width=6)
    state["8.bias"] = torch.tensor([9.0, 0, 0, 0, 0])  # always the first class
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, "wide.pt")
    options = ["--checkpoint", "wide.pt", "--model-args", '{"width": 6}']
    assert acq("evaluate", *NETWORK, *options, *DATA, "--json").json()["top1"] == 20.0


def test_a_key_chooses_the_weights_of_a_checkpoint(folder: Path) -> None:
    """Of two networks in one file."""
    state = weights()
    other = {name: value.clone() for name, value in state.items()}
    other["8.bias"] = torch.tensor([9.0, 0, 0, 0, 0])  # always the first class
    torch.save({"student": state, "teacher": other}, "both.ckpt")
    options = ["--checkpoint", "both.ckpt"]
    assert "under student, teacher; choose with --checkpoint-key" in refusal("evaluate", *NETWORK, *options, *DATA)
    found = acq("evaluate", *NETWORK, *options, "--checkpoint-key", "teacher", *DATA, "--json").json()
    assert found["top1"] == 20.0
    assert "give the file as --checkpoint" in refusal("evaluate", *NETWORK, "--checkpoint-key", "teacher", *DATA)


def test_a_network_need_not_be_quantizable(folder: Path) -> None:
    """Any classifier is evaluated, with batch norms or without."""
    assert acq("evaluate", *of("without_norms"), *DATA, "--json").json()["test_images"] == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/nope", *DATA], "there is no run folder runs/nope; give a folder that acq quantize wrote"),
        (["runs/", *DATA], "there is no run folder runs/"),
        (["pictures", *DATA], "there is no finished run in pictures; give a folder of acq quantize"),
        (["pictures", *SIZE, *DATA], "pictures is a run folder, which has its own weights and sizes"),
        (["weights.pth", *DATA], "weights.pth is a file of weights and no network"),
        (["model.onnx", *DATA], "there is no file model.onnx"),
        (["resnet02-cifar10", "--data", "sample"], "did you mean 'resnet20-cifar10'?"),
        ([*NETWORK, *DATA, "--device", "tpu"], "device 'tpu' is not known"),
        ([*NETWORK, *DATA, "--limit", "0"], "--limit"),
        ([*NETWORK, "--data", "none.npz"], "no data at none.npz"),
    ],
)
def test_a_target_that_is_not_there_is_refused(folder: Path, arguments: list[str], words: str) -> None:
    """One line tells a missing run folder, a folder without a run, a file and a misspelt network apart."""
    (folder / "pictures").mkdir()
    (folder / "weights.pth").touch()
    assert words in refusal("evaluate", *arguments)
