"""Whole runs of networks without batch norms over images, of each kind, and of networks whose only norm is unusual."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import SIZE, Applied, Head, conv, network, settled
from small_runs import KNOWN, SETTINGS, assert_same, quick, request_, run, run_until
from torch import Tensor, nn
from torch.nn import functional as F

from acq.api import write_report
from acq.config import Config
from acq.errors import Note, RequestError
from acq.recipe import Request, prepare
from acq.runs.folder import summary_of

pytestmark = pytest.mark.usefixtures("quick_runs")
UNNORMALISED: dict[str, Any] = {
    **SETTINGS,
    "generator": {"noise_dim": 4, "width": 8},
    "student": {**SETTINGS["student"], "renew_count": 0},
}
WITHOUT_GENERATOR = {**UNNORMALISED, "generator": {"noise_dim": 4, "width": 8, "steps": 0}}


def layers(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), *middle, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), Head(8)
    )


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised, as in networks without norms."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / self.weight.std((1, 2, 3), keepdim=True) / self.weight[0].numel() ** 0.5
        return F.conv2d(x, weight, self.bias, padding=1)


def tail(*rest: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *rest)


class Auxiliary(nn.Module):
    """A network whose only batch norm stands in an output that does not decide."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.norm = nn.Conv2d(3, 8, 3, 2, 1), Head(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.body(x))
        return {"logits": self.head(x), "map": self.norm(x)}


WITHOUT: dict[str, Callable[[], nn.Module]] = {
    "no norm": layers,
    "group norm": lambda: layers(nn.GroupNorm(2, 8)),
    "layer norm": lambda: layers(LayerNorm2d(8)),
    "instance norm": lambda: layers(nn.InstanceNorm2d(8)),
    "standardised weights": lambda: layers(nn.ReLU(), Standardised(8, 8, 3)),
    "batch norm of pooled features": lambda: tail(nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 5)),
    "batch norm of a sequence": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(2), nn.BatchNorm1d(8), nn.Unflatten(2, (8, 8)), Head(8)
    ),
}
UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "of the image": lambda: nn.Sequential(nn.BatchNorm2d(3), layers()),
    "of pooled features": lambda: tail(nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1), nn.Flatten()),
    "of the scores": lambda: tail(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.Flatten()),
    "beside the logits": Auxiliary,
    "of another layout": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Applied(lambda x: x.transpose(1, 2)), nn.BatchNorm2d(8),
        Applied(lambda x: x.transpose(1, 2)), Head(8),
    ),
    "instance norm with statistics": lambda: layers(nn.InstanceNorm2d(8, track_running_stats=True)),
}  # fmt: skip


def request(model: nn.Module, *changes: dict[str, Any], settings: dict[str, Any] = UNNORMALISED) -> Request:
    return Request(settled(model), KNOWN, Config.create("default", settings, *changes), {"model": "mine"})


@pytest.mark.parametrize("name", WITHOUT)
def test_a_network_without_batch_norms_is_quantized(name: str, tmp_path: Path) -> None:
    """One note says what is done, figures of norms and generator are null, and the file has the student's answers."""
    with pytest.warns(Note, match="no BatchNorm2d.*scenes.*better") as notes:
        result = run(request(WITHOUT[name](), {"bits": "w8a8"}), tmp_path / "run", export=name == "group norm")
    assert len(notes) == 1
    summary = result.summary
    assert summary["steps"]["generator"] == 0
    assert summary["attention"]["eval_train_similarity"] is None
    assert all(isinstance(summary["attention"][key], float) for key in ("correlation", "spread", "label_agreement"))
    assert set(summary["generator"].values()) == {None}
    assert 0 <= summary["agreement"] <= 100
    assert result.student(torch.zeros(2, *SIZE)).shape == (2, 5)


def test_a_guessed_normalisation_is_refused() -> None:
    """Without batch norms nothing could show that it is wrong, so the usual ones are listed."""
    guess = replace(request(layers()), normalisation_given=False)
    with pytest.raises(RequestError, match=r"not known.*--mean 0,0,0 --std 1,1,1 \(0 to 1\).*ImageNet"):
        prepare(guess)


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_network_with_one_unusual_batch_norm_is_quantized(name: str) -> None:
    """It trains a generator on the statistics of that norm, and every figure is known."""
    summary = run(request(UNUSUAL[name](), settings=SETTINGS)).summary
    figures = (*summary["attention"].values(), *summary["generator"].values())
    assert all(isinstance(value, float) for value in figures)


def folded() -> nn.Module:
    """A network of two convolutions whose batch norms are part of them."""
    pairs = [conv(3, 8, stride=2), conv(8, 8)]
    fused = [nn.utils.fusion.fuse_conv_bn_eval(*settled(pair)) for pair in pairs]  # type: ignore[misc]
    return nn.Sequential(fused[0], nn.ReLU(), fused[1], nn.ReLU(), Head(8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network whose batch norms are folded."""
    out = tmp_path_factory.mktemp("folded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        with pytest.warns(Note):
            run(request(folded()), out, tensorboard=True)
    return out


def test_the_folder_records_what_was_used(folder: Path) -> None:
    """The settings hold numbers, and neither losses of statistics nor a generator's."""
    config = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert config["generator"]["steps"] == 0
    assert config["images"]["scene"] == 1
    weights = config["images"]["losses"]
    assert {name: weights[name] for name in ("classes", "smoothness", "statistics", "centre")} == {
        "classes": 1, "smoothness": 1, "statistics": 0, "centre": 0
    }  # fmt: skip
    assert summary_of(folder)["generator"]["agreement"] is None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {record["phase"] for record in records} == {"images", "student"}
    assert {name for record in records if record["phase"] == "images" for name in record["values"]} == {
        "classes", "smoothness"
    }  # fmt: skip


def test_examples_begin_as_scenes(folder: Path) -> None:
    """Samples have no proposal."""
    rows = json.loads((folder / "samples" / "samples.json").read_text())
    assert all(list(row["files"]) == ["start", "finished"] for row in rows)
    assert all((folder / "samples" / name).exists() for row in rows for name in row["files"].values())


def test_the_page_leaves_out_what_there_is_not(folder: Path) -> None:
    """No section, column, caption or curve is about batch norms or a generator, and the command is that of a user."""
    page = write_report(folder).read_text()
    assert "<h2>Finished images</h2>" in page
    assert "Refinement starts from a procedural scene" in page
    assert "No loss asked for the centre" in page
    shown, command = page[: page.index("All settings")].split("How to reproduce it")
    for words in ("atch-norm statistics", "enerator", "similarity", "proposal", "running and with batch"):
        assert words not in shown
    assert "generator.steps" not in command
    assert "images.losses" not in command


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_without_generator_is_continued(step: int) -> None:
    """A run that was stopped within refinement ends as the one to which nothing happened."""
    with pytest.warns(Note):
        first, other, whole = (prepare(request(folded())).training for _ in range(3))
    run_until(first, "images", step)
    other.restore(first.state())
    for training in (other, whole):
        run_until(training, "conversion")
    assert_same(other.state(), whole.state())
    with pytest.warns(Note):
        last = prepare(request(folded())).training
    last.restore(whole.state())
    assert_same(last.state(), whole.state())


def test_a_network_with_norms_may_do_without_a_generator(tmp_path: Path) -> None:
    """Images begin as scenes and match the statistics; the figures of norms stay, those of the generator are null."""
    summary = run(request(network("residual"), settings=WITHOUT_GENERATOR), tmp_path / "run").summary
    assert isinstance(summary["attention"]["eval_train_similarity"], float)
    assert set(summary["generator"].values()) == {None}
    page = write_report(tmp_path / "run").read_text()
    assert "<h2>Batch-norm statistics</h2>" in page
    assert "running and with batch" in page
    assert "enerator&#39;s images" not in page
    assert "--set generator.steps=0" in page


@pytest.mark.parametrize("settings", [{"images": {"steps": 0}}, {"student": {"renew_count": 3, "renew_every": 2}}])
def test_images_without_refinement_or_generator_are_scenes(settings: dict[str, Any]) -> None:
    """Where a generator would make images as they are, scenes are drawn."""
    made = prepare(request(network("residual"), settings, settings=WITHOUT_GENERATOR)).training
    assert sum(1 for _ in made.run())
    assert len(made.context.dataset) == 24
    assert len(made.context.generated(3).label) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": {"steps": 500}}, "generator.steps is 500"),
        ({"images": {"losses": {"statistics": 10.0}}}, "images.losses.statistics is 10"),
        ({"images": {"losses": {"statistics_plain": 0.1}}}, "images.losses.statistics_plain is 0.1"),
        ({"images": {"losses": {"consistency": 1}}}, "images.losses.consistency is 1"),
        ({"generator": {"losses": {"statistics": 10}}}, "generator.losses.statistics is 10"),
        ({"images": {"scene": 0.5}}, "images.scene is 0.5"),
        ({"images": {"losses": {"classes": 0, "smoothness": 0}}}, "no loss in images.losses has a weight above 0"),
        ({"preset": "gdfq"}, "preset gdfq learns from batch norms.*--preset fast"),
        ({"preset": "acq"}, "preset acq learns from batch norms.*--preset fast"),
    ],
)
def test_what_needs_batch_norms_is_refused(changes: dict[str, Any], words: str) -> None:
    """A setting that the user gave, and that a network without batch norms cannot have, is named with the way out."""
    with pytest.raises(RequestError, match=words) as caught:
        prepare(request(layers(), changes))
    assert "; " in str(caught.value)


def test_runs_with_norms_ask_for_nothing_new() -> None:
    """The settings of a network with norms are those of before, as numbers."""
    config = prepare(request_()).config
    assert config.images.scene == 0.5
    assert config.images.losses.model_dump() == {
        "classes": 0.3, "statistics": 10, "statistics_plain": 0, "centre": 20, "paired": 0, "consistency": 0,
        "smoothness": 0,
    }  # fmt: skip
    assert (config.generator.losses.statistics, config.generator.losses.consistency) == (10, 0.3)
