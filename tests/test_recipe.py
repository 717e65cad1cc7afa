from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import network
from small_runs import KNOWN, config_, request_, run

from acq.errors import RequestError
from acq.files.documents import assignment
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student
from acq.recipe import Request, prepare, quantize
from acq.runs.session import Session

pytestmark = pytest.mark.usefixtures("quick_runs")


def student_of(name: str = "resnet", *changes: dict[str, Any]) -> Student:
    """The student of a run before its first step."""
    return prepare(Request(network(name), KNOWN, config_(*changes), {})).training.context.student


def widths(student: Student) -> dict[str, int | None]:
    """Bits of weights by layer name; None for a layer in floating point."""
    return {node.name: node.weight_bits for node in student.plan.nodes if node.weight_bits or node.floating}


def test_a_run_has_six_phases_in_order() -> None:
    """The recipe makes a first student and a generator, refines images, calibrates, trains and converts the student."""
    phases = prepare(request_()).training.phases
    assert list(phases) == ["first", "generator", "images", "calibration", "student", "conversion"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator": {"kind": "canvs"}}, r"'canvs' is not known \(did you mean 'canvas'\?\)"),
        ({"bits": "w9a4"}, "bits out of range"),
        ({"bits": "four"}, "bits not understood"),
        ({"first_last_bits": 1}, "bits out of range: first_last_bits 1"),
        ({"layers": {"stem.9": 6}}, r"layers: 'stem\.9' matches no layer.*nearest names are: .*stem\.0"),
        ({"layers": {"stem.0": 9}}, r"bits out of range: layers\.stem\.0 9"),
    ],
)
def test_a_setting_that_only_the_parts_know_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """Names and ranges that depend on the network or a registry are checked before the folder is made."""
    with pytest.raises(RequestError, match=words):
        run(request_(**settings), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Labelled images are only evaluated at the end, but checked at the beginning."""
    with pytest.raises(RequestError, match="no data at"):
        quantize(request_(), Session(tmp_path / "run"), tmp_path / "none.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_device_is_refused() -> None:
    """Without a GPU, ``cuda`` is refused with the way out, and ``auto`` is the CPU."""
    with pytest.raises(RequestError, match=r"no CUDA device .*--device cpu"):
        prepare(request_(device="cuda"))
    assert prepare(request_(device="auto")).training.context.rng.device.type == "cpu"


def test_preparing_changes_no_global_randomness() -> None:
    """Two preparations are equal whatever was drawn before, and global random numbers do not change."""
    request = request_()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = prepare(request).training.context.generator.state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = prepare(request).training.context.generator.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_power_of_two_scales_reach_every_quantizer() -> None:
    """With 8-bit activations all quantizers of the deployable student have them, or none."""
    for bits, powers in (("w4a8", True), ("w8a4", False)):
        student = student_of("residual", {"bits": bits})
        quantizers = [part for part in student.modules() if isinstance(part, ActivationQuantizer | WeightQuantizer)]
        assert len(quantizers) > 4
        assert {quantizer.power_of_two_scales for quantizer in quantizers} == {powers}


@pytest.mark.parametrize("text", ["layers.layer3.0.conv2=6", "layers.layer3.*=6", "layers.layer3.0.conv?=6"])
def test_bits_of_named_layers_reach_the_student(text: str) -> None:
    """``--set`` takes a layer's own name or a pattern, and changes the layers that match alone."""
    usual, changed = widths(student_of()), widths(student_of("resnet", assignment(text)))
    differing = {name for name in usual if usual[name] != changed[name]}
    assert differing == ({"layer3.0.conv2"} if "conv2" in text else {"layer3.0.conv1", "layer3.0.conv2"})
    assert {changed[name] for name in differing} == {6}


def test_a_layer_can_stay_in_floating_point() -> None:
    """The bits ``float`` keep a layer and the batch norm behind it as they are, and the plan says why."""
    plan = student_of("resnet", {"layers": {"layer2.*": "float"}}).plan
    kept = {node.name: node.note for node in plan.float_nodes}
    layers = {f"layer2.0.{kind}{index}" for kind in ("conv", "bn") for index in (1, 2)}
    assert kept.keys() == {*layers, "layer2.0.relu"}  # between two layers in floating point
    assert "float" in kept["layer2.0.conv1"]
