"""Whole runs of networks without features that have places: perceptrons, linear patches, short sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Applied, network, settled
from small_runs import KNOWN, SETTINGS, assert_same, run, run_until
from torch import Tensor, nn
from transformers import WIDTH, Block

from acq.api import write_report
from acq.config import Config
from acq.errors import Note, RequestError
from acq.recipe import Request, prepare

pytestmark = pytest.mark.usefixtures("quick_runs")
QUICK: dict[str, Any] = {**SETTINGS, "generator": {"noise_dim": 4, "width": 8}}
PIXELS = 3 * 16 * 16


class LinearPatches(nn.Module):
    """A vision transformer whose patches are a reshape and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(48, WIDTH), Block(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, 4, h // 4, 4, w // 4).permute(0, 2, 4, 1, 3, 5).reshape(n, 16, 48)
        return self.head(self.block(self.embed(x)).mean(1))


class Mixer(nn.Module):
    """Linear layers over places and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.places, self.channels = nn.LayerNorm(48), nn.Linear(16, 16), nn.Linear(48, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, 4, h // 4, 4, w // 4).permute(0, 2, 4, 1, 3, 5).reshape(n, 16, 48)
        x = x + self.places(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x).relu()).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 12), nn.ReLU(), nn.Linear(12, 5)),
    "perceptron with norms": lambda: network("two linears"),
    "one linear layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5)),
    "linear patches": LinearPatches,
    "mixer": Mixer,
    "sequence": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(48, 8, 16), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)
    ),
    "one cell": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)
    ),
    "embedding": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 12), Applied(lambda x: nn.functional.normalize(x))
    ),
}  # fmt: skip


def request(name: str, *changes: dict[str, Any], settings: dict[str, Any] = QUICK) -> Request:
    return Request(settled(NETWORKS[name]()), KNOWN, Config.create("default", settings, *changes), {"model": "mine"})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_features_is_quantized(name: str, tmp_path: Path) -> None:
    """Images are scenes that follow classes; figures of attention and generator are null, the file gives the answers.

    The page leaves them out.
    """
    with pytest.warns(Note, match="without a generator"):
        result = run(request(name, {"bits": "w8a8"}), tmp_path / "run", export=True)
    summary = result.summary
    assert result.exported is not None
    assert summary["steps"]["generator"] == 0
    known = {key for key, value in summary["attention"].items() if value is not None}
    assert known == (set() if name == "embedding" else {"label_agreement"})
    assert set(summary["generator"].values()) == {None}
    rows = json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())
    assert {(row["realised"], row["attention"]) for row in rows} == {(None, None)}
    page = write_report(tmp_path / "run").read_text()
    shown = page[: page.index("What to keep in mind")]
    for words in ("its attention", "entre", 'veil"', "correlation", "similarity"):
        assert words not in shown.split("</style>")[-1], words


def test_a_run_without_features_is_continued() -> None:
    """A run that was stopped within each phase ends as the one to which nothing happened."""
    for phase, step in (("images", 2), ("student", 2)):
        with pytest.warns(Note):
            first, other, whole = (prepare(request("linear patches", {"bits": "w4a8"})).training for _ in range(3))
        run_until(first, phase, step)
        other.restore(first.state())
        for training in (other, whole):
            run_until(training, "conversion")
        assert_same(other.state(), whole.state())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": {"steps": 5}}, "generator.steps is 5, but a generator follows attention.*generator.steps=0"),
        ({"images": {"losses": {"centre": 1}}}, "images.losses.centre is 1.*no features with places"),
        ({"images": {"losses": {"paired": 1}}}, "images.losses.paired is 1.*no features with places"),
        ({"images": {"losses": {"consistency": 1}}}, "images.losses.consistency is 1.*no features with places"),
        ({"student": {"losses": {"features": 2}}}, "student.losses.features is 2.*no features with places"),
        ({"preset": "gdfq"}, "preset gdfq needs features with places.*--preset fast"),
    ],
)
def test_what_needs_features_is_refused(changes: dict[str, Any], words: str) -> None:
    """A setting that the user gave, and that a network without features cannot have, is named with the way out."""
    with pytest.raises(RequestError, match=words) as caught:
        prepare(request("one cell", changes))
    assert "; " in str(caught.value)


def test_the_settings_record_what_was_used() -> None:
    """Each automatic number that depends on features is 0, and that of a network with features is as before."""
    with pytest.warns(Note, match="no features with places"):
        config = prepare(request("one cell")).config
    assert (config.generator.steps, config.images.scene) == (0, 1)
    assert (config.images.losses.centre, config.student.losses.features) == (0, 0)
    assert config.images.losses.statistics == 10
    usual = prepare(Request(network("residual"), KNOWN, Config.create("default", SETTINGS), {})).config
    assert (usual.images.losses.centre, usual.student.losses.features) == (20, 4)
