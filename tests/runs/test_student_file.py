from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import NETWORKS, SIZE, images, student_of
from torch import nn

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.trace import trace
from acq.quantization.build import build
from acq.quantization.calibration import calibrate
from acq.quantization.formats import NumberFormat
from acq.quantization.plan import plan
from acq.quantization.student import quantized_bytes
from acq.runs.names import QUANTIZATION, STUDENT
from acq.runs.student_file import exists, load, load_description, load_facts, save

Edit = Callable[[dict[str, Any]], None]

FACTS = {"model": "tiny", "mean": [0.5, 0.5, 0.5]}
FLOAT_LAYERS = {
    "resnet": "layer2.*",
    "relu6": "middle.1.0",
    "two linears": "one",
    "dense": "head.fc",
    "pre-activation": "middle.0.bn",
    "same padding": "middle.0.shared*",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(student_of("resnet"), tmp_path / "run", FACTS)
    return tmp_path / "run"


def change(folder: Path, edit: Edit) -> None:
    document = json.loads((folder / QUANTIZATION).read_text())
    edit(document)
    (folder / QUANTIZATION).write_text(json.dumps(document))


def same_after_loading(student: Any, folder: Path) -> None:
    save(student, folder, FACTS)
    loaded, x = load(folder), images(4)
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
    assert loaded.plan == load_description(folder).plan == student.plan
    assert quantized_bytes(loaded) == quantized_bytes(student)
    assert [name_of(node) for node in loaded.graph.nodes] == [name_of(node) for node in student.graph.nodes]
    assert [name for name, _ in loaded.activations()] == [name for name, _ in student.activations()]
    assert loaded.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize(("bits", "power_of_two_scales"), [("w4a4", False), ("w3a8", True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_student_is_the_saved_one(name: str, bits: str, power_of_two_scales: bool, tmp_path: Path) -> None:
    """Logits are equal bit for bit; plan, names, state and size in bytes are equal too."""
    same_after_loading(student_of(name, bits, power_of_two_scales=power_of_two_scales), tmp_path)


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_layers_in_float_are_saved_with_their_constants(name: str, tmp_path: Path) -> None:
    """A student with such layers loads bit for bit."""
    same_after_loading(student_of(name, layers={FLOAT_LAYERS[name]: "float"}), tmp_path)


def test_facts_and_normalisation_travel_with_the_student(tmp_path: Path) -> None:
    """They are equal after loading; a folder without both files has no student."""
    student = student_of("residual")
    student.preprocessing = Preprocessing(SIZE, (0.5, 0.25, 0.125), (1.0, 2.0, 4.0))
    assert not exists(tmp_path)
    save(student, tmp_path, FACTS)
    assert exists(tmp_path)
    assert load_facts(tmp_path) == FACTS
    assert load(tmp_path).preprocessing == student.preprocessing


@pytest.mark.parametrize("framing", [Framing(16), Framing(20, "bicubic")])
def test_framing_travels_with_the_student(framing: Framing, tmp_path: Path) -> None:
    """So pictures of any size are measured as the network's were."""
    student = student_of("residual")
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, framing)
    save(student, tmp_path, FACTS)
    assert load(tmp_path).preprocessing == student.preprocessing


def test_a_document_from_before_framing_is_read(tmp_path: Path) -> None:
    """It has no such key."""
    student = student_of("residual")
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    save(student, tmp_path, FACTS)
    change(tmp_path, lambda document: document["preprocessing"].pop("framing"))
    assert load(tmp_path).preprocessing == student.preprocessing


def test_facts_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Their readers expect mappings."""
    save(student_of("residual"), tmp_path, {"config": "none"})
    with pytest.raises(RequestError, match=r"the config in .* is not a mapping; quantize again"):
        load_facts(tmp_path)


@pytest.mark.parametrize(
    ("name", "channel_scale"),
    [
        ("relu_requantizer", torch.zeros(16)),
        ("relu_requantizer", torch.full((16,), torch.nan)),
        ("relu_requantizer", torch.full((16,), torch.inf)),
        ("relu_requantizer", -torch.ones(16)),
        ("relu_requantizer", torch.ones(1)),
        ("relu_requantizer", torch.ones(16, dtype=torch.int64)),
        ("layer1.0.relu_quantizer", torch.ones(16)),
    ],
    ids=["zeros", "nan", "infinite", "negative", "short", "integers", "of another quantizer"],
)
def test_wrong_channel_scales_are_refused(name: str, channel_scale: torch.Tensor, folder: Path) -> None:
    """The rest of the file is as it was written, with a matching hash."""
    tensors = safetensors.torch.load_file(folder / STUDENT)
    assert tensors["relu_requantizer.channel_scale"].shape == (16,)
    packed = safetensors.torch.save({**tensors, f"{name}.channel_scale": channel_scale})
    (folder / STUDENT).write_bytes(packed)
    change(folder, lambda document: document.update(sha256=hashlib.sha256(packed).hexdigest()))
    with pytest.raises(RequestError, match=f"{name}.*channel_scale"):
        load(folder)


def test_a_loaded_student_can_be_read_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    """It has the same taps and gradients, and saving it again gives the same two files."""
    student = load(folder)
    logits, values = student.read(images(2), ["layer1.0.relu_2", "layer2.0.relu_2"])
    logits.sum().backward()
    assert values["layer2.0.relu_2"].shape[1] == 32
    assert all(parameter.grad is not None for parameter in student.parameters())
    save(load(folder), tmp_path / "again", FACTS)
    for name in (STUDENT, QUANTIZATION):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_files_are_small_and_leave_nothing_beside_them(folder: Path) -> None:
    """Apart from its header the file of tensors holds packed integers and scales; no temporary file stays."""
    student = load(folder)
    header = int.from_bytes((folder / STUDENT).read_bytes()[:8], "little")
    assert (folder / STUDENT).stat().st_size - header - 8 <= quantized_bytes(student) + 3 * 20
    assert sorted(path.name for path in folder.iterdir()) == sorted([STUDENT, QUANTIZATION])


class Shifted(nn.Module):
    """Adds a buffer, and clips at an infinite bound; its parts have names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(3, 1, 1))
        self.parts = nn.ModuleDict({"conv-1x1": nn.Conv2d(3, 5, 1), "graph": nn.ReLU()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.parts["graph"](self.parts["conv-1x1"](x + self.shift)).clamp(0.0, float("inf"))
        return x.mean((2, 3)).to(torch.float32)


def test_constants_and_any_names_travel_with_the_student(tmp_path: Path) -> None:
    """A network with a constant, an infinite bound and unusual names comes back whole."""
    graph = trace(Shifted(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    calibrate(student, [images(8)])
    assert [name for name, _ in student.layers()] == ["add", "parts.conv-1x1"]
    same_after_loading(student, tmp_path)


def fields(**fields: Any) -> Edit:
    return lambda document: document.update(fields)


def framed(**framing: Any) -> Edit:
    known = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    return fields(preprocessing={**known, "framing": {"resize": 18, "interpolation": "bilinear", **framing}})


def node_fields(index: int, **fields: Any) -> Edit:
    return lambda document: document["nodes"][index].update(fields)


def entry_fields(section: str, **fields: Any) -> Edit:
    return lambda document: next(iter(document[section].values())).update(fields)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (fields(format=2), "has format 2 and this version reads format 5; use the version"),
        (fields(format="5"), "damaged .format: "),
        (fields(extra=1), "extra"),
        (fields(nodes=[]), "damaged"),
        (fields(layers={}), "does not describe"),
        (fields(quantizers={}), "does not describe"),
        (entry_fields("layers", bits=9), "bits"),
        (entry_fields("quantizers", bits=10**9), "bits"),
        (entry_fields("quantizers", channels=10**12), "damaged"),
        (node_fields(3, target="os.system"), "operator os.system is not allowed"),
        (node_fields(3, target="aten.from_file.default"), "aten.from_file.default is not allowed"),
        (node_fields(3, target="aten.add_.Tensor"), "aten.add_.Tensor is not allowed"),
        (node_fields(3, target="aten.bernoulli.default"), "is not allowed"),
        (node_fields(3, target="_operator.attrgetter"), "_operator.attrgetter is not allowed"),
        (node_fields(3, op="call_method"), "op"),
        (node_fields(3, args=[{"node": "nowhere"}]), "damaged"),
        (node_fields(3, args=[{"dtype": "load"}]), "damaged"),
        (node_fields(3, args=[{"file": "x"}]), "damaged"),
        (node_fields(3, name="image"), "two nodes are called 'image'"),
        (node_fields(2, target="forward"), "does not describe"),
        (framed(resize=15), "pictures are resized below the network's size"),
        (framed(resize=-16), "pictures are resized below the network's size"),
        (framed(resize=18.5), "preprocessing.framing.resize"),
        (framed(interpolation="nearest"), "preprocessing.framing.interpolation"),
        (framed(crop=16), "preprocessing.framing.crop"),
    ],
)
def test_tampered_documents_are_refused(edit: Edit, words: str, folder: Path) -> None:
    """Each error is one line with the fact, and no operator beyond the allowed ones is ever looked up."""

    def tamper(document: dict[str, Any]) -> None:
        document["nodes"] = [node for node in document["nodes"] if node["target"] != "aten.sym_size.int"]
        call = next(i for i, node in enumerate(document["nodes"]) if node["op"] == "call_function")
        document["nodes"].insert(3, document["nodes"].pop(call)) if call != 3 else None
        edit(document)

    change(folder, tamper)
    with pytest.raises(RequestError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("; ") >= 1


def image_of(size: list[int]) -> Edit:
    """The network takes larger images."""

    def edit(document: dict[str, Any]) -> None:
        image = next(node for node in document["nodes"] if node["op"] == "placeholder")
        image["shape"] = [1, *size]

    return edit


def repeat(times: int) -> Edit:
    """The first operator repeats its input so many times."""

    def edit(document: dict[str, Any]) -> None:
        node = next(node for node in document["nodes"] if node["target"].startswith("aten.relu"))
        node.update(target="aten.repeat.default", args=[node["args"][0], [1, 1, times, 1]])

    return edit


def made_of_numbers(operator: str, args: list[Any]) -> Edit:
    """The first operator makes a tensor from numbers alone."""

    def edit(document: dict[str, Any]) -> None:
        node = next(node for node in document["nodes"] if node["target"].startswith("aten.relu"))
        node.update(target=operator, args=args)

    return edit


def declares(index: int, *shape: int) -> Edit:
    """A node declares another shape than it has."""
    return lambda document: document["nodes"][index].update(shape=list(shape))


@pytest.mark.parametrize("edit", [declares(4, -1, 2**40, 8, 8), declares(4, -1, -1, 8, 8)])
def test_a_node_with_another_shape_than_it_declares_is_refused(edit: Edit, folder: Path) -> None:
    """An exported file relies on declared shapes."""
    change(folder, edit)
    with pytest.raises(RequestError, match=r"has the shape .* and declares"):
        load(folder)


def layer_of(count: int) -> Edit:
    """The first layer has so many channels."""
    return lambda document: next(iter(document["layers"].values()))["shape"].__setitem__(0, count)


@pytest.mark.parametrize(
    "edit",
    [
        image_of([3, 10**6, 10**6]),
        repeat(10**7),
        layer_of(10**12),
        made_of_numbers("aten.full.default", [[1, 8, 10**6, 10**6], 1.0]),
        made_of_numbers("aten.arange.start_step", [0, 10**13]),
    ],
)
def test_a_graph_that_asks_for_terabytes_is_never_run(
    edit: Edit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shapes are computed first, without values."""
    change(folder, edit)
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda *size, **how: pytest.fail("an image was made") if len(size) == 4 else zeros(*size, **how)
    )
    with pytest.raises(RequestError, match="is damaged") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "most"), [(STUDENT, "16 GiB"), (QUANTIZATION, "64 MiB")])
def test_files_that_are_too_large_are_refused(name: str, most: str, folder: Path) -> None:
    """They are never read."""
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RequestError, match=rf"has 1 TiB, more than the .*{most}.*; quantize again"):
        load(folder)


@pytest.mark.parametrize("name", [STUDENT, QUANTIZATION])
@pytest.mark.parametrize("keep", [0, 7, 0.5, None])
def test_cut_or_missing_files_are_refused(name: str, keep: float | None, folder: Path) -> None:
    """A file that is missing, empty or cut short is reported as such."""
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if keep is not None:
        (folder / name).write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(RequestError, match="quantize"):
        load(folder)


def test_unsaveable_networks_are_refused(tmp_path: Path) -> None:
    """An operator that load would refuse is refused on saving, before any file is written."""
    student = student_of("resnet")
    node = next(node for node in student.graph.nodes if node.op == "call_function")
    node.target = torch.ops.aten.bernoulli.default
    with pytest.raises(RequestError, match="not allowed in a saved student"):
        save(student, tmp_path, {})
    assert not list(tmp_path.iterdir())
