from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import SIZE, network
from torch import fx, nn

import acq
from acq import recipe
from acq.config import Config
from acq.core.values import Preprocessing, Record
from acq.errors import Interrupted, RequestError
from acq.files.limits import assignment
from acq.network.trace import trace, weights_hash
from acq.quantization.student import QuantLayer
from acq.recipe import Request, Result, choose_device, prepare, run
from acq.runs.student_file import load_facts

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 4, "batch": 8, "noise_dim": 4, "width": 8},
    "images": {"count": 24, "batch": 10, "steps": 2, "renew_every": 2, "renew_count": 8},
    "student": {"steps": 5, "batch": 8, "calibration_images": 8, "learning_rate": 0.001, "scale_learning_rate": 0.0003},
}


TRACES: dict[object, fx.GraphModule] = {}


def traced_once(model: nn.Module, size: tuple[int, int, int]) -> fx.GraphModule:
    """Tracing takes longer than the runs of these tests, so equal networks are traced once."""
    key = weights_hash(model), size, str(model)
    if key not in TRACES:
        TRACES[key] = trace(model, size)
    return TRACES[key]


def quick(patch: pytest.MonkeyPatch) -> None:
    """Trace once, and review few images."""
    patch.setattr(recipe, "_FRESH", 64)
    patch.setattr(recipe, "trace", traced_once)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def request_(seed: int = 0, name: str = "residual", **settings: Any) -> Request:
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    config = Config.create("default", SETTINGS, {"seed": seed}, settings)
    return Request(network(name), preprocessing, config, {"model": name, "checkpoint": None})


def stop_at(phase: str, step: int) -> Callable[[Record], None]:
    """Press Ctrl-C when a record comes."""

    def watch(record: Record) -> None:
        if (record.phase, record.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def product(folder: Path) -> tuple[bytes, Any]:
    """The student's bytes, and the figures of a run without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "student.safetensors").read_bytes(), [{**line, "seconds": 0} for line in lines]


def whole_run(folder: Path) -> Path:
    """A run to which nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        run(request_(), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    return whole_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("generator", 2),
        ("generator", 4),
        ("images", 1),
        ("images", 2),
        ("images", 3),
        ("images", 6),
        ("calibration", 1),
        ("student", 2),
        ("student", 5),
        ("freezing", 1),
    ],
)
def test_an_interrupted_run_goes_on_exactly(whole: Path, tmp_path: Path, phase: str, step: int) -> None:
    """Stopped in any phase it says how to go on, and resumed it ends with the same bytes and figures."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at {phase} step {step} of .*--resume"):
        run(request_(), folder, watch=stop_at(phase, step))
    assert not (folder / "summary.json").exists()
    assert not (folder / "student.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = run(request_(), folder, resume=True)
    assert product(folder) == product(whole)
    same = ("agreement", "attention", "steps", "bits", "quantized_bytes")
    expected = json.loads((whole / "summary.json").read_text())
    assert {name: result.summary[name] for name in same} == {name: expected[name] for name in same}


def test_a_run_may_be_interrupted_again(whole: Path, tmp_path: Path) -> None:
    """Once while the generator learns, once amid a batch of images and once while the student learns."""
    folder = tmp_path / "run"
    for phase, step, resume in (("generator", 1, False), ("images", 3, True), ("student", 3, True)):
        with pytest.raises(Interrupted):
            run(request_(), folder, resume=resume, watch=stop_at(phase, step))
    run(request_(), folder, resume=True)
    assert product(folder) == product(whole)


@pytest.mark.parametrize(("phase", "step"), [("images", 4), ("student", 3)])
def test_a_crash_costs_no_more_than_since_the_last_state(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    """With a state kept at every step, an error in the middle is resumed from there to the same end."""
    monkeypatch.setattr(recipe, "_SAVE_EVERY", 0.0)
    folder, seen = tmp_path / "run", list[Record]()

    def fail(record: Record) -> None:
        if (record.phase, record.step) == (phase, step):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(request_(), folder, watch=fail)
    run(request_(), folder, resume=True, watch=seen.append)
    steps = [("images", i) for i in (4, 5, 6)] + [("calibration", 1)]
    steps += [("student", i + 1) for i in range(5)] + [("freezing", 1)]
    assert [(record.phase, record.step) for record in seen] == steps[steps.index((phase, step)) :]
    assert product(folder) == product(whole)


def test_a_run_killed_before_its_first_state_starts_again(whole: Path, tmp_path: Path) -> None:
    """Resuming it is as good as starting it."""
    folder = tmp_path / "run"

    def fail(record: Record) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(request_(), folder, watch=fail)
    run(request_(), folder, resume=True)
    assert product(folder) == product(whole)


def test_a_finished_run_is_returned(whole: Path) -> None:
    """Resuming it trains nothing, changes no file and gives the same student."""
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file() and file.name != ".lock"}
    seen: list[Record] = []
    result = run(request_(), whole, resume=True, watch=seen.append)
    after = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file() and file.name != ".lock"}
    assert seen == []
    assert after == before
    assert result.folder == whole
    assert result.summary == json.loads((whole / "summary.json").read_text())


def test_a_finished_run_is_told_its_accuracy(whole: Path, tmp_path: Path) -> None:
    """Given data now, it reports and keeps what it would have reported then."""
    folder, data = tmp_path / "run", tmp_path / "data.npz"
    shutil.copytree(whole, folder)
    rng = np.random.default_rng(0)
    np.savez(data, images=rng.integers(0, 256, (20, 16, 16, 3), np.uint8), labels=rng.integers(0, 5, 20))
    figures = run(request_(), folder, resume=True, data=data).summary
    assert figures["images"] == 20
    assert figures["top1"] == round(acq.evaluate(folder, data), 2)
    assert figures == json.loads((folder / "summary.json").read_text())


def test_a_finished_run_that_lost_its_student_is_mended(whole: Path, tmp_path: Path) -> None:
    """From its checkpoint, to the same bytes."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "student.safetensors").unlink()
    run(request_(), folder, resume=True)
    assert product(folder) == product(whole)


def test_what_is_resumed_is_in_a_folder() -> None:
    """As are TensorBoard's files; without one, nothing is trained."""
    for asked in ("resume", "overwrite", "tensorboard"):
        with pytest.raises(RequestError, match="in the run folder; give out"):
            run(request_(), **{asked: True})


def test_other_settings_and_other_weights_are_not_resumed(tmp_path: Path) -> None:
    """A run goes on with what it began with, or not at all."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request_(), folder, watch=stop_at("generator", 2))
    with pytest.raises(RequestError, match=r"another config\.seed"):
        run(request_(seed=1), folder, resume=True)
    other = request_()
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.01)
    other = replace(other)  # a request holds the network as it was when it was made
    with pytest.raises(RequestError, match=r"another teacher .*; .*--overwrite"):
        run(other, folder, resume=True)
    run(request_(), folder, resume=True)


def test_overwriting_starts_again(whole: Path, tmp_path: Path) -> None:
    """Nothing of an earlier, interrupted run with other settings is left."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request_(seed=1, name="squeeze-excite"), folder, watch=stop_at("student", 2))
    run(request_(), folder, overwrite=True)
    assert product(folder) == product(whole)


def test_without_a_folder_the_result_is_the_same(whole: Path) -> None:
    """A run that keeps nothing makes the student of one that keeps everything, bit for bit."""
    kept, held = run(request_(), whole, resume=True), run(request_())
    assert isinstance(held, Result)
    assert held.folder is None
    images = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(held.student(images), kept.student(images))
    assert not held.student.training


def test_the_folder_says_what_was_asked(whole: Path) -> None:
    """The resolved settings, the network's origin and its preprocessing, beside the student as in the folder."""
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    assert Config.create("default", settings["config"]) == request_().config
    assert settings["origin"] == {"model": "residual", "checkpoint": None}
    assert settings["preprocessing"] == {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    facts = load_facts(whole)
    assert facts["config"] == settings["config"]
    assert facts["classes"] == 5


def test_the_samples_are_kept(whole: Path) -> None:
    """Each image has a line of what was asked and what was found."""
    rows = json.loads((whole / "samples" / "samples.json").read_text())
    files = sorted(file.name for file in (whole / "samples").glob("*.png"))
    assert files == [f"{index:03d}.png" for index in range(len(rows))]
    assert rows[0].keys() == {"label", "found", "centre", "realised"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator": {"kind": "canvs"}}, r"'canvs' is not known \(did you mean 'canvas'\?\)"),
        ({"bits": "w9a4"}, "bits out of range"),
        ({"bits": "four"}, "bits not understood"),
        ({"ends": 1}, "bits out of range: ends 1"),
    ],
)
def test_a_setting_that_no_part_takes_is_told_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """Names and ranges that only the parts know are checked before the folder is made."""
    with pytest.raises(RequestError, match=words):
        run(request_(**settings), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    """What is only read at the end is checked at the beginning."""
    with pytest.raises(RequestError, match="no data at"):
        run(request_(), tmp_path / "run", data=tmp_path / "none.npz")
    assert list(tmp_path.iterdir()) == []


def test_preparing_changes_no_global_randomness() -> None:
    """Two preparations are equal whatever was drawn before, and what is drawn after does not depend on them."""
    request = request_()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = prepare(request)
    assert torch.equal(torch.rand(3), expected)
    second = prepare(request)
    for name, value in first.generator.state_dict().items():
        assert torch.equal(value, second.generator.state_dict()[name]), name


def test_a_device_that_is_absent_is_told() -> None:
    """``auto`` finds one, ``cuda`` insists."""
    assert choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(RequestError, match=r"no CUDA device .*--device cpu"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("settings", "binary"),
    [
        ({"bits": "w4a8"}, True),
        ({"bits": "w4a8", "binary_scales": False}, False),
        ({"bits": "w4a8", "placement": "relu-only"}, False),
        ({"bits": "w8a4"}, False),
    ],
)
def test_scales_are_binary_where_activations_have_eight_bits(settings: dict[str, Any], binary: bool) -> None:
    """In the deployable placement; every grid is, or none."""
    config = Config.create("default", {"device": "cpu"}, settings)
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    student = prepare(Request(network("residual"), preprocessing, config, {})).student
    assert student.plan.bits.binary == binary
    assert {quantizer.binary for _, quantizer in student.activations()} == {binary}
    assert {layer.weight_quantizer.binary for _, layer in student.layers()} == {binary}


@pytest.mark.parametrize(("name", "steps"), [("relu6", 0), ("residual", 600)])
def test_the_request_knows_its_network(name: str, steps: int) -> None:
    """What was left open is filled in by what the trace holds."""
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    assert Request(network(name), preprocessing, Config.create(), {}).config.student.steps == steps


def test_layers_get_bits_of_their_own() -> None:
    """At most the mean over those that nothing else gives bits, which the settings then record; twice the same."""
    settings = {"bits": "auto", "budget": 3.5, "layers": {"conv2d_2": 8}}
    made = [request_(name="resnet", ends=8, **settings) for _ in range(2)]
    assert made[0].config == made[1].config
    layers = made[0].config.layers
    student = prepare(made[0]).student
    widths = {site.node: site.weight_bits for site in student.plan.sites if site.weight_bits}
    counts = {str(node.meta.get("layer", node.name)): module.weight.numel() for node, module in student.placed()
              if isinstance(module, QuantLayer)}  # fmt: skip
    assert widths.items() >= {name: 7 if bits == 8 else bits for name, bits in layers.items()}.items()
    chosen = layers.keys() - {"conv2d_2"}
    assert {name for name in widths if name not in layers} == {"conv2d", "linear"}  # the ends
    mean = sum(counts[name] * layers[name] for name in chosen) / sum(counts[name] for name in chosen)
    assert 3.0 < mean <= 3.5


def test_bits_that_nothing_is_left_to_choose_for_are_told() -> None:
    """A network of one layer, which is an end; with ends as the others it is free."""

    single = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(RequestError, match=r"every layer has bits by `ends` or `layers`; give ends same"):
        Request(single, preprocessing, Config.create("default", {"bits": "auto"}), {})
    free = Config.create("default", {"bits": "auto", "budget": 3.0, "ends": "same"})
    assert Request(single, preprocessing, free, {}).config.layers == {"conv2d": 3}


def test_bits_of_a_layer_reach_the_student() -> None:
    """Set as on the command line; the report's own advice has this form."""
    config = Config.create("default", assignment("layers.conv2d_1=6"))
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    sites = prepare(Request(network("residual"), preprocessing, config, {})).student.plan.sites
    assert {site.node: site.weight_bits for site in sites}["conv2d_1"] == 6
