"""A whole network means the same in the file as in the student."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import NETWORKS, SIZE, images, student_of

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.export.check import Parity, check
from acq.export.graph import onnx_model
from acq.quantization.integers import convert_to_integers
from acq.quantization.node_plan import Placement
from acq.quantization.student import Student

PLACEMENTS: tuple[Placement, Placement] = ("deployable", "relu-only")
WIDTHS = ("w4a4", "w2a3", "w8a8")
EXPORTABLE = sorted(set(NETWORKS) - {"unknown operator"})
# each network with all widths and both placements, each width with both placements
PAIRS = [
    (name, bits, PLACEMENTS[(place + width) % 2])
    for place, name in enumerate(EXPORTABLE)
    for width, bits in enumerate(WIDTHS)
]
FLOAT_LAYERS = {
    "resnet": "layer2.*",
    "relu6": "middle.1.0",  # depthwise
    "two linears": "one",  # with a batch norm on [N, C]
    "dense": "head.fc",
    "pre-activation": "middle.0.bn",
    "same padding": "middle.0.conv",
    "all convolutional": "*",
}


def integer_student(name: str, bits: str, placement: Placement = "deployable", **options: object) -> Student:
    student = student_of(name, bits, placement, **options)
    convert_to_integers(student)
    return student.eval()


def compared(student: Student, folder: Path, count: int = 24) -> Parity:
    onnx.save(onnx_model(student), folder / "model.onnx")
    return check(folder / "model.onnx", student, images(count, SIZE, 5))


@pytest.mark.parametrize(("name", "bits", "placement"), PAIRS)
def test_a_network_means_the_same_in_the_file(name: str, bits: str, placement: Placement, tmp_path: Path) -> None:
    """Classes agree, logits are equal, and all layers of the deployable placement run on integer kernels."""
    count = 192 if bits == "w8a8" else 24  # of few images 90 % would be chance
    found = compared(integer_student(name, bits, placement), tmp_path, count)
    for match in (found.plain, found.optimised):
        assert match.agreement == 100
        assert match.equal >= (100 if bits != "w8a8" else 90)
    if placement == "deployable":
        assert found.integer == found.layers


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_layers_in_float_mean_the_same_in_the_file(name: str, tmp_path: Path) -> None:
    """Logits are equal on both engines, and only these layers run on float kernels."""
    student = integer_student(name, "w4a4", layers={FLOAT_LAYERS[name]: "float"})
    found = compared(student, tmp_path)
    assert found.plain.equal == found.optimised.equal == 100
    assert found.openvino is not None
    assert found.openvino.match.agreement == 100
    kept = [entry for entry in student.plan.nodes if entry.note.startswith("kept in floating point")]
    batch_norms = sum(entry.operator == "aten.batch_norm.default" for entry in kept)  # no engine's layer by itself
    assert found.layers == len(list(student.layers())) + len(kept) - batch_norms
    assert found.integer <= len(list(student.layers()))


@pytest.mark.parametrize("bits", ["w4", "w8"])
@pytest.mark.parametrize("name", ["resnet", "squeeze-excite", "two linears"])
def test_weights_alone_make_a_smaller_file_of_floats(name: str, bits: str, tmp_path: Path) -> None:
    """Weights are stored in their bits, nothing else is rounded, and no layer of ONNX Runtime runs on integers."""
    student = integer_student(name, bits)
    found = compared(student, tmp_path)
    assert found.optimised.agreement == 100
    assert found.optimised.difference < 1e-4
    assert found.integer == 0
    kinds = {node.op_type for node in onnx_model(student).graph.node}
    assert "QuantizeLinear" not in kinds
    assert "DequantizeLinear" in kinds


def test_names_in_the_file_are_the_networks() -> None:
    """Constants have names of layers and tensors, and none of torch.fx."""
    student = integer_student("resnet", "w4a4", layers={"layer2.0.conv1": "float"})
    names = {constant.name for constant in onnx_model(student).graph.initializer}
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv1.scale", "layer1.0.conv1.bias"} <= names
    assert {"layer1.0.relu_2.zero_point", "layer2.0.conv1.weight.constant", "linear.weight"} <= names
    assert not {name for name in names if "conv2d" in name or "batch_norm" in name}


def test_the_file_describes_itself() -> None:
    """The metadata have the format, the placement, the classes, given facts and, if known, the normalisation."""
    student = integer_student("two linears", "w4a8")
    known = {
        "model": "mine",
        "seed": "3",
        "bits": "w4a8",
        "placement": "deployable",
        "outputs": '["logits"]',
        "counted": '[{"output": 0, "ending": null, "kind": "class", "shape": [5]}]',
        "images": "normalised floats [N, C, H, W]",
    }
    for preprocessing, more in (
        (None, {}),
        (
            Preprocessing(SIZE, (0.5, 0.25, 0.125), (1.0, 2.0, 4.0)),
            {"input_size": "3,16,16", "mean": "0.5,0.25,0.125", "std": "1.0,2.0,4.0"},
        ),
        (
            Preprocessing(SIZE, (0.5,) * 3, (1.0,) * 3, Framing(18, "bicubic")),
            {
                "input_size": "3,16,16",
                "mean": "0.5,0.5,0.5",
                "std": "1.0,1.0,1.0",
                "resize": "18",
                "interpolation": "bicubic",
            },
        ),
    ):
        student.preprocessing = preprocessing
        model = onnx_model(student, facts={"model": "mine", "seed": 3})
        assert {entry.key: entry.value for entry in model.metadata_props} == {**known, **more}


def test_bytes_need_a_known_normalisation() -> None:
    """The message says what is missing."""
    with pytest.raises(RequestError, match=r"the normalisation of images is unknown, .*; give preprocessing"):
        onnx_model(integer_student("two linears", "w4a4"), raw_images=True)
