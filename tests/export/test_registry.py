from __future__ import annotations

from helpers import traced

from acq.errors import RequestError
from acq.export.registry import OPERATORS, argument, convolution_attributes, input_of, refused, writes
from acq.export.writer import Value, Writer
from acq.network.names import name_of


def test_an_operator_is_registered_by_its_names() -> None:
    """One function may write several operators."""

    @writes("first.default", "second.default")
    def write(writer: Writer, node: object) -> Value:
        return Value("x")

    assert OPERATORS.pop("aten.first.default") is OPERATORS.pop("aten.second.default") is write


def test_arguments_that_are_left_out_have_defaults() -> None:
    """The first argument is the input node."""
    nodes = {name_of(node): node for node in traced("resnet").graph.nodes}
    pooled = nodes["adaptive_avg_pool2d"]
    assert input_of(pooled) is nodes["layer3.0.relu_2"]
    assert argument(pooled, 1) == [1, 1]
    assert argument(pooled, 2, 7) == 7


def test_a_refusal_names_operator_node_and_way_out() -> None:
    """It is one line."""
    node = next(node for node in traced("resnet").graph.nodes if name_of(node) == "layer1.0.add")
    error = refused(node, " with a factor")
    assert isinstance(error, RequestError)
    assert str(error) == (
        "operator add.Tensor of node layer1.0.add cannot be exported to ONNX with a factor; "
        "evaluate or load the run folder instead"
    )


def test_only_attributes_that_differ_from_the_defaults_are_written() -> None:
    """The kernel is always written."""
    plain = convolution_attributes((3, 3), pads=(0, 0, 0, 0), stride=(1, 1), dilation=(1, 1), groups=1)
    assert plain == {"kernel_shape": [3, 3]}
    given = convolution_attributes((3, 3), pads=[0, 1, 0, 1], stride=(2, 1), dilation=(1, 2), groups=4)
    assert given == {
        "kernel_shape": [3, 3],
        "strides": (2, 1),
        "dilations": (1, 2),
        "group": 4,
        "pads": (0, 1, 0, 1),
    }
