from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import NETWORK, SIZE, acq, refusal

from acq import zoo
from acq.config import Config
from acq.files.documents import read_settings
from acq.presets import PRESETS

pytestmark = pytest.mark.usefixtures("folder")
RESNET = "resnet20-cifar10"


def plan_of(*arguments: str) -> dict[str, dict[str, Any]]:
    """The plan by node name."""
    rows = acq("inspect", *arguments, "--json").json()["plan"]
    return {row["name"]: row for row in rows}


def test_a_plan_is_printed() -> None:
    """Each operator has a line, and those that stay in floating point are counted."""
    out = acq("inspect", *NETWORK, "--bits", "w3a5", "--first-last-bits", "same").text()
    assert out.splitlines()[0].split() == ["node", "operator", "role", "weights", "output", "shape", "file", "note"]
    assert "batch_norm" in out
    assert "0 operators stay in floating point" in out.splitlines()
    assert out.splitlines()[-2].endswith("opened on onnxruntime, openvino")
    assert out.splitlines()[-1] == "it answers with 5 classes"


def test_facts_of_the_network_are_in_json() -> None:
    """The object has the plan and what was found in the network."""
    found = acq("inspect", *NETWORK, "--json").json()
    assert (found["model"], found["classes"], found["batch_norms"]) == ("tinynet:network", 5, 2)
    assert found["attention"] == "class activation"
    assert found["features"] in {row["name"] for row in found["plan"]}
    assert found["export"] is None
    assert {row["file"] for row in found["plan"] if row["role"] == "convolution"} == {"integer"}
    assert all(row.keys() >= {"name", "role", "weight_bits", "output_bits", "floating"} for row in found["plan"])


def test_options_of_bits_show_in_the_plan() -> None:
    """Bits of additions and of the first and last layers are those of their options."""
    usual, same = plan_of(RESNET), plan_of(RESNET, "--add-bits", "same", "--first-last-bits", "same")
    assert {row["output_bits"] for row in usual.values() if row["requantize_for"]} == {8}
    assert not any(row["requantize_for"] for row in same.values())
    for name in ("conv1", "linear"):
        assert (usual[name]["weight_bits"], same[name]["weight_bits"]) == (8, 4)


def test_settings_of_single_layers_show_in_the_plan() -> None:
    """``--set``, ``--exclude``, a preset and a file act as in a run, and the later pattern wins."""
    layers = ["--set", "layers.layer3.*=6", "--set", "layers.layer3.2.conv2=5", "--exclude", "layer1.0.*"]
    plan = plan_of(RESNET, *layers)
    bits = {name: row["weight_bits"] for name, row in plan.items() if row["role"] == "convolution"}
    assert {bits[f"layer3.{block}.conv{index}"] for block in (0, 1) for index in (1, 2)} == {6}
    assert bits["layer3.2.conv2"] == 5
    assert bits["layer2.0.conv1"] == 4
    assert plan["layer1.0.conv1"]["floating"]
    assert not plan["layer1.1.conv1"]["floating"]


def test_layers_in_floating_point_are_listed_with_the_reason() -> None:
    """An excluded layer is named below the plan."""
    out = acq("inspect", RESNET, "--exclude", "linear").text()
    assert "operators stay in floating point:" in out
    assert "  linear (aten.linear.default): kept in floating point" in out


def test_a_preset_and_a_file_act_as_in_a_run(tmp_path: Path) -> None:
    """The plan follows the settings of a file."""
    (tmp_path / "c.yaml").write_text("bits: w2a3\nadd_bits: same\n")
    plan = plan_of(RESNET, "--config", str(tmp_path / "c.yaml"), "--preset", "gdfq")
    assert plan["layer1.0.conv1"]["weight_bits"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*NETWORK, "--bits", "w44"], "w4a4"),
        ([RESNET, "--set", "layers.layer3.2.conv3=6"], "'layer3.2.conv3' matches no layer with weights"),
        ([RESNET, "--set", "layers.layer3.2.conv3=6"], "the nearest names are: layer3.2.conv2, layer3.2.conv1"),
        ([RESNET, "--exclude", "layer4.*"], "the nearest names are: "),
        ([*NETWORK[:1], *SIZE, "--placement", "all"], "'auto', 'deployable', 'layers' or 'relu-only'"),
    ],
)
def test_a_wrong_plan_is_refused(arguments: list[str], words: str) -> None:
    """One line names the option, and the nearest names of layers that are there."""
    assert words in refusal("inspect", *arguments)


def test_built_in_networks_are_listed() -> None:
    """Each has its input, classes and parameters, as a table and as JSON."""
    out = acq("models").text()
    assert all(name in out for name in zoo.builtin_names())
    models = acq("models", "--json").json()["models"]
    assert [model["name"] for model in models] == zoo.builtin_names()
    assert models[0]["input_size"] == [3, 32, 32]


@pytest.mark.parametrize("preset", PRESETS)
def test_printed_settings_are_a_file_of_settings(preset: str, tmp_path: Path) -> None:
    """The output is YAML that ``--config`` takes back, and gives the same settings."""
    options = ["--set", "layers.layer3.*=6", "--set", "student.learning_rate=1e-4", "--set", "generator.batch=auto"]
    out = acq("settings", "--preset", preset, *options).text()
    (tmp_path / "c.yaml").write_text(out)
    expected = Config.create(preset, {"layers": {"layer3.*": 6}, "student": {"learning_rate": 1e-4}})
    assert Config.create("default", read_settings(tmp_path / "c.yaml")) == expected
    assert acq("settings", "--config", str(tmp_path / "c.yaml")).text() == out
    assert acq("settings", "--config", str(tmp_path / "c.yaml"), "--json").json() == expected.model_dump(mode="json")


def test_settings_start_with_what_they_differ_from() -> None:
    """Without options the default preset is printed, with a comment on each line."""
    out = acq("settings").text()
    assert yaml.safe_load(out)["preset"] == "default"
    assert out == Config.create().to_commented_yaml()


def test_wrong_settings_are_refused() -> None:
    """A setting that is not known is named as in a run."""
    assert "did you mean 'steps'" in refusal("settings", "--set", "student.step=3")
