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

from acq.errors import RequestError
from acq.network.trace import trace
from acq.quantization.calibration import calibrate
from acq.quantization.plan import NumberFormat, plan
from acq.quantization.student import build, quantized_bytes
from acq.runs.student_file import DOCUMENT, WEIGHTS, load, load_facts, save

Edit = Callable[[dict[str, Any]], None]

FACTS = {"model": "tiny", "mean": [0.5, 0.5, 0.5]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(student_of("resnet"), tmp_path / "run", FACTS)
    return tmp_path / "run"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("bits", "binary"), [("w4a4", False), ("w3a8", False), ("w3a8", True)])
def test_loaded_student_is_the_saved_one(name: str, bits: str, power_of_two: bool, tmp_path: Path) -> None:
    """Logits are equal bit for bit, and so are plan and size in bytes."""
    student, x = student_of(name, bits, power_of_two=power_of_two), images(4)
    save(student, tmp_path, FACTS)
    loaded = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
    assert loaded.plan == student.plan
    assert quantized_bytes(loaded) == quantized_bytes(student)
    assert load_facts(tmp_path) == FACTS


@pytest.mark.parametrize(("bits", "version"), [("w4a8", 1), ("w4a4", 2)])
def test_a_student_whose_grids_divide_channels_says_so(bits: str, version: int, tmp_path: Path) -> None:
    """Readers of the first format would leave the ratios out, so they must refuse it; they read all others."""
    student = student_of("resnet", bits)
    save(student, tmp_path, FACTS)
    assert json.loads((tmp_path / DOCUMENT).read_text())["format"] == version
    assert any(grid.channel_scale is not None for _, grid in load(tmp_path).activations()) is (version == 2)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("relu_narrow_quantizer", torch.zeros(16)),
        ("relu_narrow_quantizer", torch.full((16,), torch.nan)),
        ("relu_narrow_quantizer", torch.full((16,), torch.inf)),
        ("relu_narrow_quantizer", -torch.ones(16)),
        ("relu_narrow_quantizer", torch.ones(1)),
        ("relu_narrow_quantizer", torch.ones(16, dtype=torch.int64)),
        ("relu_1_quantizer", torch.ones(16)),
    ],
    ids=["zeros", "nan", "infinite", "negative", "short", "integers", "of another grid"],
)
def test_ratios_that_are_none_are_refused(name: str, channel_scale: torch.Tensor, folder: Path) -> None:
    """Whatever else the file holds is as it was written, its digest too."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    assert tensors["relu_narrow_quantizer.channel_scale"].shape == (16,)
    packed = safetensors.torch.save({**tensors, f"{name}.channel_scale": channel_scale})
    (folder / WEIGHTS).write_bytes(packed)
    document = json.loads((folder / DOCUMENT).read_text())
    (folder / DOCUMENT).write_text(json.dumps({**document, "sha256": hashlib.sha256(packed).hexdigest()}))
    with pytest.raises(RequestError, match=f"{name} cannot divide channels"):
        load(folder)


def test_loaded_student_can_be_read_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    """It has the same taps and gradients, and saving it again gives the same two files."""
    student = load(folder)
    logits, values = student.read(images(2), ["relu_2", "relu_4"])
    logits.sum().backward()
    assert values["relu_4"].shape[1] == 32
    assert all(parameter.grad is not None for parameter in student.parameters())
    save(load(folder), tmp_path / "again", FACTS)
    for name in (WEIGHTS, DOCUMENT):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_files_are_small_and_leave_nothing_beside_them(folder: Path) -> None:
    """Beside its header the weights' file holds packed integers and scales; no temporary file stays."""
    student = load(folder)
    header = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    assert (folder / WEIGHTS).stat().st_size - header - 8 <= quantized_bytes(student) + 3 * 20
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, DOCUMENT])


def test_constants_travel_with_the_student(tmp_path: Path) -> None:
    """A network with a buffer that it adds, and an infinite bound, comes back whole."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.randn(3, 1, 1))
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x + self.shift).clamp(0.0, float("inf"))
            return x.mean((2, 3)).to(torch.float32)

    graph = trace(Shifted(), SIZE)
    student = build(graph, plan(graph, NumberFormat(4, 4)))
    calibrate(student, [images(8)])
    save(student, tmp_path, {})
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(images(2)), student(images(2)))


def change(**fields: Any) -> Edit:
    return lambda document: document.update(fields)


def change_node(index: int, **fields: Any) -> Edit:
    return lambda document: document["nodes"][index].update(fields)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change(format=3), "format"),
        (change(extra=1), "extra"),
        (change(nodes=[]), "damaged"),
        (change(layers={}), "does not describe"),
        (change(quantizers={}), "does not describe"),
        (change_node(3, target="os.system"), "operator os.system is not allowed"),
        (change_node(3, target="aten.from_file.default"), "aten.from_file.default is not allowed"),
        (change_node(3, target="aten.add_.Tensor"), "aten.add_.Tensor is not allowed"),
        (change_node(3, target="aten.bernoulli.default"), "is not allowed"),
        (change_node(3, target="_operator.attrgetter"), "_operator.attrgetter is not allowed"),
        (change_node(3, op="call_method"), "op"),
        (change_node(3, args=[{"node": "nowhere"}]), "damaged"),
        (change_node(3, args=[{"dtype": "load"}]), "damaged"),
        (change_node(3, args=[{"file": "x"}]), "damaged"),
        (change_node(3, name="x"), "damaged"),
        (change_node(2, target="forward"), "does not describe"),
    ],
)
def test_tampered_documents_are_refused(edit: Callable[[dict[str, Any]], None], words: str, folder: Path) -> None:
    """Each is one line that names the fact; no operator beyond the allowed ones is ever looked up."""
    document = json.loads((folder / DOCUMENT).read_text())
    document["nodes"] = [node for node in document["nodes"] if node["target"] != "aten.sym_size.int"]
    call = next(i for i, node in enumerate(document["nodes"]) if node["op"] == "call_function")
    document["nodes"].insert(3, document["nodes"].pop(call)) if call != 3 else None
    edit(document)
    (folder / DOCUMENT).write_text(json.dumps(document))
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


def layer_of(count: int) -> Edit:
    """The first layer has so many channels."""
    return lambda document: next(iter(document["layers"].values()))["shape"].__setitem__(0, count)


@pytest.mark.parametrize("edit", [image_of([3, 10**6, 10**6]), repeat(10**7), layer_of(10**12)])
def test_a_graph_that_asks_for_terabytes_is_never_run(
    edit: Edit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shapes are looked at first, without values."""
    document = json.loads((folder / DOCUMENT).read_text())
    edit(document)
    (folder / DOCUMENT).write_text(json.dumps(document))
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda *size, **how: pytest.fail("an image was made") if len(size) == 4 else zeros(*size, **how)
    )
    with pytest.raises(RequestError, match="is damaged") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "most"), [(WEIGHTS, "16 GiB"), (DOCUMENT, "64 MiB")])
def test_files_that_are_too_large_are_refused(name: str, most: str, folder: Path) -> None:
    """Before they are read."""
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RequestError, match=rf"has 1 TiB, more than the {most} that are read; quantize again"):
        load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, DOCUMENT])
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
    """An operator that load would not accept is refused on saving, before any file is written."""
    student = student_of("resnet")
    node = next(node for node in student.graph.nodes if node.op == "call_function")
    node.target = torch.ops.aten.bernoulli.default
    with pytest.raises(RequestError, match="not allowed in a saved student"):
        save(student, tmp_path, {})
    assert not list(tmp_path.iterdir())
