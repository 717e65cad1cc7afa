from __future__ import annotations

import json
import math
import operator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, student_of, traced
from numpy.typing import NDArray

from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.operators import VOCABULARY
from acq.quantization.calibration import calibrate
from acq.quantization.equalization import equalize
from acq.quantization.student import Student
from acq.runs.names import QUANTIZATION, STUDENT
from acq.runs.student_file import save
from acq.runs.student_format import FORMAT, decode, encode, operator_named

Array = NDArray[Any]


class Reader:
    """Reads a saved student by ``docs/run-folder.md`` with numpy and json alone."""

    TYPES = {"U8": np.uint8, "F32": np.float32, "F64": np.float64, "I64": np.int64}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.document = json.loads((folder / "quantization.json").read_text())
        content = (folder / "student.safetensors").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        self.tensors: dict[str, Array] = {}
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, last = (start + offset for offset in entry["data_offsets"])
                values = np.frombuffer(content[first:last], self.TYPES[entry["dtype"]])
                self.tensors[name] = values.reshape(entry["shape"])

    @property
    def power_of_two_scales(self) -> bool:
        return bool(self.document["plan"]["format"]["power_of_two_scales"])

    def integers(self, layer: str) -> Array:
        """The weights' integers, as packed in the file."""
        entry = self.document["layers"][layer]
        bits, count = entry["bits"], math.prod(entry["shape"])
        stream = np.unpackbits(self.tensors[f"{layer}.weight"], bitorder="little")[: count * bits]
        unsigned = stream.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))
        return np.where(unsigned >= 1 << (bits - 1), unsigned - (1 << bits), unsigned).reshape(entry["shape"])

    def weight_scales(self, layer: str) -> Array:
        scale = np.exp(self.tensors[f"{layer}.log_scale"])
        return self.rounded(scale, 12 - self.document["layers"][layer]["bits"])

    def activation_scale(self, quantizer: str) -> Array:
        return self.rounded(np.exp(self.tensors[f"{quantizer}.log_scale"]), 1)

    def rounded(self, scale: Array, digits: int) -> Array:
        """The scale to so many significant binary digits, if scales are powers of two."""
        if not self.power_of_two_scales:
            return scale
        fraction, exponent = np.frexp(scale)
        return np.ldexp(np.round(fraction * 2**digits) / 2**digits, exponent)


def saved(student: Student, folder: Path) -> Reader:
    save(student, folder, {})
    return Reader(folder)


STUDENTS = [
    ("resnet", "w4a4", {}),
    ("resnet", "w3a8", {"power_of_two_scales": True, "reduce_range": True}),
    ("relu6", "w2a5", {"layers": {"middle.1.0": "float"}}),
    ("same padding", "w8a8", {"reduce_range": True}),
    ("two linears", "w7a4", {}),
]


@pytest.mark.parametrize(("name", "bits", "options"), STUDENTS, ids=lambda value: str(value))
def test_files_are_read_with_numpy_and_json_alone(name: str, bits: str, options: Any, tmp_path: Path) -> None:
    """Integers, zero points and biases are the student's exactly, scales to the last digit of exp."""
    student, batches = student_of(name, bits, **options), images(32).split(16)
    equalize(student, batches)
    calibrate(student, batches)
    reader = saved(student, tmp_path)
    assert (reader.document["format"], QUANTIZATION, STUDENT) == (FORMAT, "quantization.json", "student.safetensors")
    tolerance = {"rtol": 0 if reader.power_of_two_scales else 3e-7}  # implementations of exp differ in the last digit
    layers = dict(student.layers())
    assert list(reader.document["layers"]) == list(layers)
    for layer, module in layers.items():
        quantizer = module.weight_quantizer
        assert np.array_equal(reader.integers(layer), quantizer.integers(module.weight).numpy())
        np.testing.assert_allclose(reader.weight_scales(layer), quantizer.scale.detach().numpy(), **tolerance)
        assert (f"{layer}.bias" in reader.tensors) == (module.bias is not None)
        if module.bias is not None:
            assert np.array_equal(reader.tensors[f"{layer}.bias"], module.bias.detach().numpy())
    quantizers = {name_of(n): m for n, m in student.modules_in_order() if name_of(n) in reader.document["quantizers"]}
    assert len(quantizers) == len(list(student.activations()))
    for node, module in quantizers.items():
        entry = reader.document["quantizers"][node]
        assert (entry["bits"], entry["tensor"]) == (module.bits, module.name)
        np.testing.assert_allclose(reader.activation_scale(node), module.scale.detach().numpy(), **tolerance)
        assert reader.tensors[f"{node}.zero_point"] == module.zero_point.numpy()
        assert (entry["channels"] is None) == (module.channel_scale is None)
        if module.channel_scale is not None:
            assert np.array_equal(reader.tensors[f"{node}.channel_scale"], module.channel_scale.numpy())


def test_the_graph_is_read_with_json_alone(tmp_path: Path) -> None:
    """Arguments name earlier nodes, targets name layers, quantizers and constants, and the plan has every node."""
    student = student_of("resnet", layers={"layer2.*": "float"})
    reader = saved(student, tmp_path)
    nodes = reader.document["nodes"]
    known: set[str] = set()
    for node in nodes:
        assert {value["node"] for value in node["args"] if isinstance(value, dict) and "node" in value} <= known
        known.add(node["name"])
        if node["op"] == "call_module":
            assert node["target"] in reader.document["layers"] or node["name"] in reader.document["quantizers"]
        if node["op"] == "get_attr":
            assert f"{node['name']}.constant" in reader.tensors
    assert [node["name"] for node in nodes] == [name_of(node) for node in student.graph.nodes]
    planned = [entry["name"] for entry in reader.document["plan"]["nodes"]]
    assert planned == [
        name_of(node) for node in traced("resnet").graph.nodes if node.op in ("placeholder", "call_function")
    ]


@pytest.mark.parametrize(
    "value",
    [3, 0.5, True, None, "same", [1, [2, None]], float("inf"), float("-inf"), torch.float32, torch.channels_last],
    ids=str,
)
def test_arguments_are_decoded_to_themselves(value: Any) -> None:
    """They pass through JSON unchanged."""
    assert decode(json.loads(json.dumps(encode(value), allow_nan=False)), {}) == value


def test_nodes_are_encoded_by_public_name() -> None:
    """They are found again among the nodes before."""
    node = next(node for node in traced("resnet").graph.nodes if name_of(node) == "layer1.0.relu_2")
    assert encode([node]) == [{"node": "layer1.0.relu_2"}]
    assert decode(encode([node]), {"layer1.0.relu_2": node}) == [node]


def test_other_arguments_are_refused() -> None:
    """The message has the argument."""
    with pytest.raises(RequestError, match=r"cannot be saved: it uses device\(type='cpu'\); simplify"):
        encode(torch.device("cpu"))


def test_of_all_operators_only_those_of_the_core_set_and_the_planner_are_found() -> None:
    """None of them writes, draws random numbers, reads memory as it is or computes gradients."""
    found = set()
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        with suppress(RequestError):
            found.add(operator_named(f"aten.{packet}.{overload or 'default'}"))
    assert len(found) > 200
    for operator_found in found:
        assert str(operator_found) in VOCABULARY or torch.Tag.core in operator_found.tags
        assert not operator_found._schema.is_mutable
        assert not any(word in str(operator_found) for word in ("rand", "dropout", "empty", "as_strided", "_backward"))


def test_only_operators_that_compute_are_found() -> None:
    """Operators of ATen on tensors and arithmetic on sizes are; files, chance and changes in place are not."""
    assert operator_named("aten.relu.default") is torch.ops.aten.relu.default
    assert operator_named("aten.batch_norm.default") is torch.ops.aten.batch_norm.default
    assert operator_named("_operator.getitem") is operator.getitem
    for name in ("aten.rand_like.default", "aten.relu_.default", "aten.from_file.default", "os.system", "relu"):
        with pytest.raises(RequestError, match=f"operator {name} is not allowed in a saved student; remove it"):
            operator_named(name)
