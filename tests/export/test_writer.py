from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import student_of
from onnx import TensorProto, numpy_helper

from acq.errors import RequestError
from acq.export.graph import onnx_model
from acq.export.writer import Delayed, Value, Writer, byte_of
from acq.quantization.integers import convert_to_integers
from acq.quantization.quantizers import ActivationQuantizer


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT4"), (4, "INT4"), (5, "INT8"), (8, "INT8")])
def test_weights_are_stored_in_few_bits(bits: int, kind: str) -> None:
    """Weights of up to 4 bits are INT4, wider ones INT8; the integers are the student's."""
    student = student_of("two linears", f"w{bits}a4", first_last_bits="same")
    convert_to_integers(student)
    stored = {tensor.name: tensor for tensor in onnx_model(student).graph.initializer}
    for name, layer in student.layers():
        weight = stored[f"{name}.weight"]
        assert weight.data_type == getattr(TensorProto, kind)
        integers = torch.from_numpy(numpy_helper.to_array(weight).astype("int8"))
        assert torch.equal(integers, layer.weight_quantizer.integers(layer.weight))
        assert np.array_equal(numpy_helper.to_array(stored[f"{name}.scale"]), layer.weight_quantizer.scale.detach())


def test_a_constant_is_kept_once() -> None:
    """The same value under the same name is one constant; another value is an error."""
    writer = Writer()
    assert writer.integers([1, 2]) == writer.integers([1, 2])
    assert len(writer.constants) == 1
    with pytest.raises(ValueError, match="two constants are called integers_1_2"):
        writer.constant("integers_1_2", np.zeros(3))


def quantizer(**options: int) -> ActivationQuantizer:
    made = ActivationQuantizer(4, "relu", **options)
    made.set_qparams(torch.tensor(0.5), torch.tensor(3.0))
    return made


@pytest.mark.parametrize(
    ("bounds", "clip"),
    [((-math.inf, math.inf), (0, 15)), ((0, math.inf), (3, 15)), ((0, 2.75), (3, 9)), ((-9.0, 99.0), (0, 15))],
)
def test_a_rectifier_becomes_a_clip_of_integers(bounds: tuple[float, float], clip: tuple[int, int]) -> None:
    """Bounds are rounded as the quantizer rounds (2.75 is 5.5 steps, which become 6), within its width."""
    writer = Writer()
    found = writer.quantized(Value("x", bounds=bounds), quantizer(), 4)
    assert [node.op_type for node in writer.nodes] == ["QuantizeLinear", "Clip"]
    assert [numpy_helper.to_array(writer.constants[name]).item() for name in writer.nodes[1].input[1:]] == list(clip)
    assert found.bytes == writer.nodes[1].output[0]
    assert found.floats is None


def test_channels_behind_a_rectifier_are_not_divided() -> None:
    """The builder makes no such student, so a file that asks for it is refused."""
    divides = quantizer(channels=2)
    assert divides.channel_scale is not None
    divides.channel_scale[0] = 0.5
    with pytest.raises(RequestError, match="relu divides channels right behind a rectifier; quantize again"):
        Writer().quantized(Value("x", bounds=(0, math.inf)), divides, 4)


@pytest.mark.parametrize("value", [-math.inf, -9.0, -0.25, 0.25, 2.75, 3e38, math.inf])
def test_the_byte_of_a_value_is_the_quantizers(value: float) -> None:
    """Halves go to even, and what is beyond the range to its end."""
    wanted = quantizer()(torch.tensor(min(max(value, -1e9), 1e9))).item() / 0.5 + 3
    assert byte_of(value, quantizer()) == wanted


def test_an_operator_that_is_delayed_is_written_behind_the_quantizer() -> None:
    """Each input is quantized with its bounds; the width's bounds come once, behind it."""
    writer = Writer()
    parts = Value("x"), Value("y", bounds=(0, math.inf))
    writer.quantized(Value(None, delayed=Delayed(parts, lambda names, _: writer.add("Max", names))), quantizer(), 4)
    assert [node.op_type for node in writer.nodes] == ["QuantizeLinear", "QuantizeLinear", "Clip", "Max", "Clip"]


def test_an_operator_that_is_delayed_takes_floats_without_a_quantizer() -> None:
    """The bounds of its inputs and its own are then operators."""
    writer = Writer()
    parts = Value("x"), Value("y", bounds=(0, math.inf))
    joined = Value(None, bounds=(-1, 1), delayed=Delayed(parts, lambda names, _: writer.add("Max", names)))
    writer.floats_of(joined)
    assert [node.op_type for node in writer.nodes] == ["Relu", "Max", "Clip"]


def test_engines_cannot_move_a_transposition_of_bytes() -> None:
    """A Clip that changes no byte stands between it and the floats."""
    writer = Writer()
    turned = writer.add("Transpose", ["bytes"], perm=[1, 0])
    writer.floats_of(Value(None, turned, ("scale", "zero_point")))
    assert [node.op_type for node in writer.nodes] == ["Transpose", "Clip", "DequantizeLinear"]
