from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, SIZE, network, student_of
from small_runs import KNOWN
from torch import nn

import acq
from acq import api
from acq.errors import Note

pytestmark = pytest.mark.usefixtures("quick_runs")
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "generator": {"steps": 1, "batch": 4, "noise_dim": 4, "width": 8},
    "images": {"count": 16, "batch": 16, "steps": 1},
    "calibration": {"images": 8},
    "student": {"steps": 0, "batch": 4},
}


def quantize(name: str = "all convolutional", **changes: Any) -> acq.Result:
    normalisation = {"mean": KNOWN.mean, "std": KNOWN.std}
    usual = {"input_size": SIZE, **normalisation, "settings": SETTINGS, "progress": False, "export": False}
    return acq.quantize(network(name), **usual | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty random images with random labels."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (20, 16, 16, 3), np.uint8), labels=rng.integers(0, 5, 20))
    return path


def test_every_public_name_is_there() -> None:
    """Each name that ``acq`` offers can be imported and has a docstring."""
    for name in acq.__all__:
        assert getattr(acq, name).__doc__, name


def test_python_has_the_verbs_of_the_command_line() -> None:
    """Each command that does something with a network or run has a function, with its arguments documented."""
    for name in ("quantize", "evaluate", "predict", "export_run", "benchmark", "write_report", "compare", "inspect"):
        function = getattr(acq, name)
        assert getattr(api, name) is function
        for parameter in inspect.signature(function).parameters:
            assert f"{parameter}: " in str(function.__doc__) or name == "write_report", (name, parameter)


def test_settings_are_those_that_were_given() -> None:
    """Bits, seed and preset are arguments or settings, and an argument counts more."""
    assert quantize().summary["bits"] == "w4a4"
    assert quantize(settings={**SETTINGS, "bits": "w8a8"}).summary["bits"] == "w8a8"
    summary = quantize(settings={**SETTINGS, "bits": "w8a8", "seed": 3}, bits="w3a3", seed=4, device="cpu").summary
    assert (summary["bits"], summary["seed"]) == ("w3a3", 4)
    assert quantize(preset="fast", settings={**SETTINGS, "placement": "relu-only"}).summary["preset"] == "fast"
    assert quantize(settings={**SETTINGS, "preset": "gdfq"}).summary["preset"] == "gdfq"


def test_preprocessing_is_given_or_that_of_imagenet() -> None:
    """The student carries it, so that its images can be prepared later. A guess is noted."""
    with pytest.warns(Note, match="ImageNet's are assumed"):
        guessed = quantize(mean=None, std=None)
    assert guessed.student.preprocessing == acq.Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert quantize(mean=[0.5] * 3, std=[0.25] * 3, input_size=[3, 16, 16]).student.preprocessing == KNOWN


def test_pictures_of_any_size_are_measured(tmp_path: Path) -> None:
    """Student and network take them as ``resize`` says; a network that was found has its own."""
    images = np.random.default_rng(0).integers(0, 256, (8, 24, 20, 3), np.uint8)
    np.savez(tmp_path / "large.npz", images=images, labels=np.arange(8) % 5)
    with pytest.warns(Note, match="8 of 8 images have another size than 16x16: .* resized to 17 pixels"):
        result = quantize(data=tmp_path / "large.npz", resize=17)
    known = acq.Preprocessing(SIZE, KNOWN.mean, KNOWN.std, acq.Framing(17))
    assert result.student.preprocessing == known
    with pytest.warns(Note, match="resized to 17 pixels"):
        top1 = acq.evaluate(result.student, tmp_path / "large.npz")
    assert top1 == result.summary["top1"]
    with pytest.raises(acq.RequestError, match=r"give input_size, mean, std and resize to acq\.zoo\.resolve"):
        acq.quantize(acq.zoo.resolve("resnet20-cifar10"), resize=40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"outputs": "0"}, "a student knows which of its outputs decide"),
        ({"output_kinds": ("class",)}, "a student knows which of its outputs decide"),
    ],
)
def test_options_that_do_nothing_for_a_student_are_refused(data: Path, options: dict[str, Any], words: str) -> None:
    """And no option is ignored."""
    student = student_of("residual")
    student.preprocessing = KNOWN
    with pytest.raises(acq.RequestError, match=words):
        acq.evaluate(student, data, **options)


def test_predictions_are_checked_like_evaluations(tmp_path: Path) -> None:
    """A framing by hand, and one path in place of a list."""
    student = student_of("residual")
    wrong = replace(KNOWN, framing=acq.Framing(15))
    with pytest.raises(acq.RequestError, match="pictures are resized below the network's size"):
        acq.predict(student, [tmp_path / "a.png"], preprocessing=wrong)
    with pytest.raises(acq.RequestError, match="there are no images; give a list"):
        acq.predict(student, "a.png", preprocessing=KNOWN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ["a", "b"]}, "there are 2 names of classes but the network returns 5 classes"),
        ({"class_names": "abcde"}, "class_names has a class without a name"),
        ({"resize": 15}, "--resize is 15"),
        ({"input_size": (3, 16)}, "--input-size"),
        ({"input_size": ("3", "16", "16")}, "--input-size"),
        ({"input_size": (1, 16, 16), "mean": None, "std": None}, "1 channels"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 values"),
        ({"bits": "w1a1"}, "out of range"),
        ({"preset": "quick"}, "not known"),
        ({"device": "tpu"}, "'device'"),
        ({"settings": {"studnt": {}}}, "did you mean 'student'"),
        ({"settings": {"layers": {"scores": "float", "stem": 4}}}, "'stem' matches no layer"),
        ({"data": "nowhere.npz"}, "no data at nowhere.npz"),
        ({"resume": True}, "no run"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
)
def test_a_wrong_request_is_refused_and_nothing_is_written(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """The message is one line, as on the command line."""
    with pytest.raises(acq.RequestError, match=words) as caught:
        quantize(out=tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_progress_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``progress=False`` leaves both streams empty; a watch still gets every record in order."""
    seen: list[acq.Record] = []
    quantize(out=tmp_path / "run", watch=seen.append)
    assert capfd.readouterr() == ("", "")
    assert [record.phase for record in seen] == ["first", "generator", "images", "calibration", "conversion"]


def test_progress_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """By default each phase is shown, and standard output stays empty."""
    seen: list[acq.Record] = []
    quantize(progress=True, watch=seen.append)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/7 train the generator: 1/1" in err
    assert "7/7 convert to integers: 1/1" in err
    assert len(seen) == 5


def test_a_plan_is_inspected_without_training() -> None:
    """``inspect`` gives the plan that a run would use, and leaves the model as it is."""
    model = network("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known = {"input_size": KNOWN.input_size, "mean": KNOWN.mean, "std": KNOWN.std}
    plan = acq.inspect(model, **known, bits="w3a5", settings={"layers": {"head.fc": "float"}})
    assert (plan.format.weight, plan.format.activation) == (3, 5)
    before_it = ["middle.2.relu_2", "head.adaptive_avg_pool2d"]  # only the layer in floating point reads them
    assert [node.name for node in plan.float_nodes] == [*before_it, "head.fc"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert acq.inspect(model, **known).format == acq.Config.create().format


def test_a_network_is_evaluated_with_its_preprocessing(data: Path) -> None:
    """Accuracy is the share of right answers, counted by hand; a limit takes the first images."""
    model = network("residual")
    with np.load(data) as archive:
        pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(archive["labels"])
    with torch.no_grad():
        right = model((pixels - 0.5) / 0.25).argmax(1) == labels
    model.train()
    found = [
        acq.evaluate(model, place, preprocessing=KNOWN, limit=limit) for place, limit in ((data, None), (str(data), 5))
    ]
    assert found == pytest.approx([100 * right[:limit].float().mean().item() for limit in (None, 5)])
    assert model.training


def test_a_run_and_its_file_are_evaluated_by_path(data: Path, tmp_path: Path) -> None:
    """Run folder, exported file and student have one accuracy, and each knows its classes."""
    student = quantize(out=tmp_path / "run").student
    file = acq.export_onnx(student, tmp_path / "model.onnx").path
    assert acq.evaluate(tmp_path / "run", data) == acq.evaluate(str(file), data) == acq.evaluate(student, data)
    targets = [api.target(place) for place in (student, tmp_path / "run", file)]
    assert [target.output for target in targets] == [CLASSES] * 3
    assert {target.preprocessing for target in targets} == {student.preprocessing}
    with pytest.raises(acq.RequestError, match="there is no file"):
        acq.evaluate("none.onnx", data)


def test_a_network_without_preprocessing_is_not_evaluated(data: Path) -> None:
    """Its normalisation cannot be guessed."""
    with pytest.raises(acq.RequestError, match="give preprocessing"):
        acq.evaluate(network("residual"), data)


def test_a_run_is_exported_and_reported_by_its_folder(tmp_path: Path) -> None:
    """Both files are written into the folder, and the file names the network it came from."""
    quantize(out=tmp_path / "run")
    made = acq.export_run(tmp_path / "run")
    assert made.path == tmp_path / "run" / "model.onnx"
    assert made.parity.images == 32  # the run's own 16 synthetic images, and a view of each
    assert api.engine(made.path).model.startswith("helpers:")
    assert acq.write_report(tmp_path / "run") == tmp_path / "run" / "report.html"


def test_what_is_no_run_is_not_loaded(tmp_path: Path) -> None:
    """A missing folder, a folder without a run and a damaged file are each refused in one line."""
    with pytest.raises(acq.RequestError, match="there is no run folder"):
        acq.load(tmp_path / "none")
    with pytest.raises(acq.RequestError, match="no quantized student"):
        acq.load(tmp_path)
    quantize(out=tmp_path / "run")
    assert isinstance(acq.load(tmp_path / "run"), acq.Student)
    with (tmp_path / "run" / "student.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(acq.RequestError, match="quantize again"):
        acq.load(tmp_path / "run")


def test_networks_of_every_kind_go_through() -> None:
    """Networks without a linear head or with an operator that stays in floating point are quantized."""
    for name in ("unknown operator", "pre-activation"):
        result = quantize(name)
        assert result.student(torch.zeros(2, *SIZE)).shape == (2, 5)
        assert (result.summary["float_operators"] > 0) == (name == "unknown operator")


def test_images_need_not_be_square_or_in_colour() -> None:
    """A network for grey images of 20 x 12 pixels is quantized like any other."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    result = acq.quantize(model, input_size=(1, 20, 12), mean=[0.5], std=[0.5], settings=SETTINGS, progress=False)
    assert result.student(torch.zeros(2, 1, 20, 12)).shape == (2, 3)
