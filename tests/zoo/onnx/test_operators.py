from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_files import model_of, on_onnxruntime, one_node

from acq.errors import RequestError
from acq.zoo.onnx.batches import TRIAL
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import graph_of
from acq.zoo.onnx.network import OnnxNetwork
from acq.zoo.onnx.registry import OPERATORS
from acq.zoo.onnx.trial import tried

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def number(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


def number_list(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


Case = tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]
IMAGE, SEQUENCE, ROWS = (4, 7, 9), (5, 6), (6,)
UNARY = [
    "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "HardSwish", "Softplus", "Softsign", "Mish", "Reciprocal",
    "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "IsNaN", "HardSigmoid", "LeakyRelu",
    "Elu", "Celu", "Selu", "ThresholdedRelu", "Gelu", "Identity", "Dropout", "GlobalAveragePool", "GlobalMaxPool",
    "Softmax", "LogSoftmax", "Flatten", "Clip", "MeanVarianceNormalization", "LpNormalization",
]  # fmt: skip
CASES: list[Case] = [
    *((kind, IMAGE, (), {}) for kind in UNARY),
    ("HardSigmoid", IMAGE, (), {"alpha": 1 / 6, "beta": 0.5}),
    ("Gelu", IMAGE, (), {"approximate": "tanh"}),
    ("Selu", IMAGE, (), {"alpha": 1.5, "gamma": 1.1}),
    ("ThresholdedRelu", IMAGE, (), {"alpha": 0.3}),
    ("PRelu", IMAGE, (floats(4, 1, 1),), {}),
    ("PRelu", IMAGE, (floats(1),), {}),
    ("PRelu", SEQUENCE, (floats(6),), {}),
    ("Clip", IMAGE, (number(0), number(6)), {}),
    ("Clip", IMAGE, (number(-1), None), {}),
    ("Clip", IMAGE, (), {"min": -0.5, "max": 0.5, "opset": 9}),
    ("Softmax", IMAGE, (), {"axis": 1}),
    ("Softmax", IMAGE, (), {"opset": 11}),
    ("Softmax", IMAGE, (), {"axis": 2, "opset": 9}),
    ("LogSoftmax", ROWS, (), {"opset": 9}),
    ("Conv", IMAGE, (floats(8, 4, 3, 3), floats(8)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", IMAGE, (floats(8, 4, 3, 2),), {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    ("Conv", IMAGE, (floats(8, 1, 3, 3), floats(8)), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", IMAGE, (floats(8, 4, 2, 2),), {"auto_pad": "SAME_LOWER"}),
    ("Conv", IMAGE, (floats(8, 4, 3, 3),), {"auto_pad": "VALID"}),
    ("Conv", SEQUENCE, (floats(3, 5, 3), floats(3)), {"pads": [1, 1]}),
    ("Conv", (2, 3, 4, 5), (floats(3, 2, 2, 2, 2),), {}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 3, 3), floats(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 3, 3),), {"strides": [2, 2], "output_padding": [1, 1]}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 4, 4),), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 3, 3),), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 3, 3),), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", IMAGE, (floats(4, 3, 3, 3),), {"strides": [2, 2], "output_shape": [14, 18]}),
    ("ConvTranspose", IMAGE, (floats(4, 2, 3, 3),), {"group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", SEQUENCE, (floats(5, 3, 3),), {"strides": [2]}),
    ("Gemm", ROWS, (floats(6, 5), floats(5)), {}),
    ("Gemm", ROWS, (floats(5, 6), floats(1, 5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", ROWS, (floats(5, 6), number(0.7)), {"transB": 1}),
    ("Gemm", ROWS, (floats(5, 6),), {"transB": 1}),
    ("MatMul", ROWS, (floats(6, 5),), {}),
    ("MatMul", SEQUENCE, (floats(6, 3),), {}),
    ("MatMul", SEQUENCE, (floats(1, 6, 3),), {}),
    ("Einsum", SEQUENCE, (floats(6, 3),), {"equation": "nij,jk->nik"}),
    ("Einsum", SEQUENCE, (floats(6, 3),), {"equation": "...j,jk"}),
    ("BatchNormalization", IMAGE, (floats(4), floats(4), floats(4), abs(floats(4))), {"epsilon": 1e-3}),
    ("BatchNormalization", ROWS, (floats(6), floats(6), floats(6), abs(floats(6))), {"opset": 9}),
    ("InstanceNormalization", IMAGE, (floats(4), floats(4)), {}),
    ("LayerNormalization", SEQUENCE, (floats(6), floats(6)), {}),
    ("LayerNormalization", IMAGE, (floats(7, 9),), {"axis": -2}),
    ("GroupNormalization", IMAGE, (floats(2), floats(2)), {"num_groups": 2}),
    ("GroupNormalization", IMAGE, (floats(4), floats(4)), {"num_groups": 2, "opset": 21}),
    ("RMSNormalization", SEQUENCE, (floats(6),), {"opset": 23}),
    ("Swish", IMAGE, (), {"opset": 24}),
    ("Swish", IMAGE, (), {"opset": 24, "alpha": 1.702}),
    ("GatherND", IMAGE, (np.array([[1], [-2], [0]]),), {"batch_dims": 1}),
    ("GatherND", IMAGE, (np.array([[[1, -2]], [[0, 3]], [[2, 2]]]),), {"batch_dims": 1}),
    ("GatherND", IMAGE, (RNG.integers(0, 7, (3, 4, 2, 1)),), {"batch_dims": 2}),
    ("Attention", (2, 5, 8), (floats(3, 2, 5, 8), floats(3, 2, 5, 6)), {"opset": 23}),
    ("Attention", (5, 8), (floats(3, 6, 8), floats(3, 6, 12)), {"opset": 23, "q_num_heads": 2, "kv_num_heads": 2}),
    ("Attention", (4, 5, 8), (floats(3, 2, 5, 8), floats(3, 2, 5, 8)), {"opset": 23, "scale": 0.2, "is_causal": 1}),
    ("Attention", (2, 5, 8), (floats(3, 2, 5, 8), floats(3, 2, 5, 8), floats(5, 5)), {"opset": 23}),
    (
        "Attention", (2, 5, 8), (floats(3, 2, 5, 8), floats(3, 2, 5, 8), np.tri(5, dtype=bool)), {"opset": 23},
    ),
    ("RotaryEmbedding", (2, 5, 8), (floats(3, 5, 4), floats(3, 5, 4)), {"opset": 23}),
    ("RotaryEmbedding", (2, 5, 8), (floats(3, 5, 4), floats(3, 5, 4)), {"opset": 23, "interleaved": 1}),
    ("RotaryEmbedding", (5, 16), (floats(3, 5, 4), floats(3, 5, 4)), {"opset": 23, "num_heads": 2}),
    (
        "RotaryEmbedding", (2, 5, 8), (floats(9, 2), floats(9, 2), RNG.integers(0, 9, (3, 5))),
        {"opset": 23, "rotary_embedding_dim": 4},
    ),
    (
        "Resize", IMAGE, (None, number_list(1, 1, 2, 2)),
        {"mode": "linear", "antialias": 1, "coordinate_transformation_mode": "half_pixel"},
    ),
    ("LpNormalization", IMAGE, (), {"axis": 1, "p": 1}),
    ("LRN", IMAGE, (), {"size": 3, "alpha": 0.1}),
    ("LRN", (6, 2, 2), (), {"size": 5, "beta": 0.5, "bias": 2.0}),
    *((kind, IMAGE, (floats(4, 1, 1),), {}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *((kind, IMAGE, (number(0.5),), {}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((kind, IMAGE, (number(0.5),), {}) for kind in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal")),
    ("Pow", IMAGE, (number(2),), {}),
    ("Mod", IMAGE, (number(0.7),), {"fmod": 1}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1], "dilations": [1, 2]}),
    ("MaxPool", SEQUENCE, (), {"kernel_shape": [2]}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 0]}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0], "count_include_pad": 1}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", SEQUENCE, (), {"kernel_shape": [3], "pads": [1, 1]}),
    *(
        (f"Reduce{kind}", IMAGE, (ints(2, 3),), {"keepdims": keep})
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")
        for keep in (0, 1)
    ),
    ("ReduceMean", IMAGE, (), {"axes": [-1], "opset": 13}),
    ("ReduceSum", IMAGE, (), {"axes": [1, 2], "opset": 11}),
    ("ReduceSum", IMAGE, (), {"noop_with_empty_axes": 1}),
    ("ArgMax", IMAGE, (), {"axis": 1, "keepdims": 0}),
    ("ArgMin", IMAGE, (), {"axis": -1}),
    ("TopK", ROWS, (ints(3),), {"outputs": 2}),
    ("TopK", ROWS, (ints(2),), {"outputs": 2, "largest": 0, "axis": 1}),
    ("CumSum", IMAGE, (np.array(1),), {}),
    ("CumSum", IMAGE, (np.array(2),), {"exclusive": 1, "reverse": 1}),
    ("Reshape", IMAGE, (ints(0, 2, -1),), {}),
    ("Reshape", IMAGE, (ints(-1, 2, 2, 63),), {}),
    ("Flatten", IMAGE, (), {"axis": 2}),
    ("Transpose", IMAGE, (), {"perm": [0, 2, 3, 1]}),
    ("Squeeze", (1, 3, 1), (ints(1, 3),), {}),
    ("Squeeze", (1, 3, 1), (), {"axes": [-1], "opset": 11}),
    ("Unsqueeze", ROWS, (ints(1, -1),), {}),
    ("Unsqueeze", ROWS, (), {"axes": [2], "opset": 11}),
    ("Expand", (1, 3), (ints(1, 4, 3),), {}),
    ("Tile", (2, 3), (ints(1, 2, 3),), {}),
    ("Concat", IMAGE, (floats(3, 2, 7, 9),), {"axis": 1}),
    ("Split", IMAGE, (ints(1, 3),), {"axis": 1, "outputs": 2}),
    ("Split", IMAGE, (), {"axis": 1, "outputs": 2, "split": [3, 1], "opset": 11}),
    ("Split", IMAGE, (), {"axis": 3, "outputs": 3, "num_outputs": 3}),
    ("DepthToSpace", IMAGE, (), {"blocksize": 2}),
    ("DepthToSpace", IMAGE, (), {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", (2, 4, 6), (), {"blocksize": 2}),
    ("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 0, 3, 0),), {}),
    ("Pad", IMAGE, (ints(0, 1, 0, 0, 0, 2, 0, 0), number(0.5)), {}),
    ("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 0, 3, 0),), {"mode": "reflect"}),
    ("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 0, 3, 0),), {"mode": "edge"}),
    ("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 0, 3, 0),), {"mode": "wrap"}),
    ("Pad", IMAGE, (ints(1, 2), None, ints(-1)), {}),
    ("Pad", IMAGE, (ints(0, 0, -1, 0, 0, 0, -2, 1),), {}),
    ("Pad", IMAGE, (), {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0, "opset": 9}),
    ("Slice", IMAGE, (ints(1), ints(-1), ints(2)), {}),
    ("Slice", IMAGE, (ints(-1), ints(-(2**63)), ints(1), ints(-1)), {}),
    ("Slice", IMAGE, (ints(8, 1), ints(2, 100), ints(3, 1), ints(-3, 2)), {}),
    ("Slice", IMAGE, (), {"starts": [1], "ends": [3], "axes": [1], "opset": 9}),
    ("Gather", IMAGE, (np.array(2),), {"axis": 1}),
    ("Gather", IMAGE, (ints(1, 2, 3),), {"axis": 1}),
    ("Gather", IMAGE, (ints(-1, 0, 0),), {"axis": 2}),
    ("Gather", IMAGE, (np.array([[0, 2], [1, 3]]),), {"axis": 1}),
    ("GatherElements", ROWS, (np.tile([[0, -1, 2]], (3, 1)),), {"axis": 1}),
    ("ScatterElements", ROWS, (np.tile([[0, 3]], (3, 1)), floats(3, 2)), {"axis": 1}),
    ("ScatterND", (2, 3), (np.array([[0, 1], [2, 0]]), floats(2, 3)), {}),
    ("GatherND", (2, 3), (np.array([[0, 1], [2, 0]]),), {}),
    ("Trilu", IMAGE, (), {}),
    ("Trilu", IMAGE, (np.array(-1),), {"upper": 0}),
    ("Cast", IMAGE, (), {"to": onnx.TensorProto.INT64}),
    ("Cast", IMAGE, (), {"to": onnx.TensorProto.BOOL}),
    ("Cast", IMAGE, (), {"to": onnx.TensorProto.DOUBLE}),
    ("Shape", IMAGE, (), {"start": 1}),
    ("Upsample", IMAGE, (np.array([1, 1, 2, 3], np.float32),), {"opset": 9}),
    ("Upsample", IMAGE, (np.array([1, 1, 2, 2], np.float32),), {"opset": 9, "mode": "linear"}),
    ("Resize", IMAGE, (np.array([1, 1, 2, 2], np.float32),), {"opset": 10}),
    ("Resize", IMAGE, (np.array([1, 1, 1.5, 0.6], np.float32),), {"opset": 10, "mode": "linear"}),
]  # fmt: skip
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SIZES = [(14, 18), (21, 9), (5, 3), (10, 13)]
CASES += [
    (
        "Resize", IMAGE, (None, None, ints(3, 4, *size)),
        {"mode": "nearest", "coordinate_transformation_mode": place, "nearest_mode": rounding},
    )
    for size in SIZES for place in COORDINATES for rounding in ROUNDINGS
    if place != "half_pixel_symmetric" or rounding.startswith("round")  # elsewhere the runtime's own rounding decides
]  # fmt: skip
CASES += [
    ("Resize", IMAGE, (None, None, ints(3, 4, *size)), {"mode": "linear", "coordinate_transformation_mode": place})
    for size in SIZES for place in COORDINATES
]  # fmt: skip
CASES += [
    (
        "Resize", IMAGE, (None, np.array([1, 1, 1.7, 0.45], np.float32)),
        {"mode": mode, "coordinate_transformation_mode": place},
    )
    for mode in ("nearest", "linear") for place in COORDINATES
]  # fmt: skip
CASES += [
    ("Resize", IMAGE, (None, None, ints(3, 4, *size)), {"mode": "cubic", "coordinate_transformation_mode": place})
    for size in SIZES for place in ("half_pixel", "align_corners")
]  # fmt: skip


_FIXED = {
    "Concat",
    "GatherElements",
    "ScatterElements",
    "ScatterND",
    "GatherND",
    "Attention",
    "RotaryEmbedding",
    "Shape",
    "GridSample",
}  # of the count of images


def title(case: Case) -> str:
    kind, shape, inputs, attributes = case
    shown = [
        str(value.shape if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value) for value in inputs
    ]
    return f"{kind} {shape} {' '.join(shown)} {attributes}".replace("\n", " ")


def computed(model: onnx.ModelProto, images: torch.Tensor) -> list[torch.Tensor]:
    """What the importer's network computes, after one pass without values."""
    graph = folded(graph_of(model, "x", tuple(value.name for value in model.graph.output)))
    if not _FIXED.intersection(node.kind for node in graph.nodes):
        assert tried(graph, torch.empty(TRIAL, *images.shape[1:], device="meta"), None) == {}
    return list(OnnxNetwork(graph)(images).values())


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


MASKS = [node("Greater", "x zero", "a"), node("Less", "x one", "b")]
SCALARS = {"zero": number(0), "one": number(1), "half": number(0.5)}
GRAPHS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Any]]] = {
    **{
        kind: ([node("Abs", "x", "a"), node("Min", "a most", "b"), node(kind, "b")], IMAGE, {"most": number(0.9)})
        for kind in ("Sqrt", "Log", "Asin", "Acos")
    },
    **{kind: ([*MASKS, node(kind, "a b")], IMAGE, SCALARS) for kind in ("And", "Or", "Xor")},
    "Not": ([*MASKS, node("Not", "a")], IMAGE, SCALARS),
    "Where": ([*MASKS, node("Where", "a x half")], IMAGE, SCALARS),
    "ReduceLogSum": ([node("Abs", "x", "a"), node("ReduceLogSum", "a axes")], IMAGE, {"axes": ints(1)}),
    "CastLike": ([*MASKS, node("CastLike", "a x")], IMAGE, SCALARS),
    "Size": ([node("Size", "x", "a"), node("Cast", "a", "b", to=1), node("Mul", "x b")], (2, 3), {}),
    "sizes in arithmetic": (
        [
            node("Shape", "x", "shape"), node("Gather", "shape two", "a"), node("Mul", "a two", "b"),
            node("Div", "b three", "c"), node("Mod", "c three", "d"), node("Unsqueeze", "d axes", "e"),
            node("Concat", "e e", "f", axis=0), node("ReduceProd", "f", "g", keepdims=0), node("Max", "g one", "h"),
            node("Cast", "h", "i", to=1), node("Add", "x i"),
        ],
        (8, 9), {"one": np.array(1), "two": np.array(2), "three": np.array(3), "axes": ints(0)},
    ),
    "ConstantOfShape": ([node("Shape", "x", "a"), node("ConstantOfShape", "a", "b"), node("Sub", "b x")], ROWS, {}),
    "Range": (
        [
            node("Shape", "x", "a"), node("Gather", "a one", "b"), node("Range", "zero b one", "c"),
            node("Cast", "c", "d", to=1), node("Add", "x d"),
        ],
        ROWS, {"zero": np.array(0), "one": np.array(1)},
    ),
    "Range of floats": ([node("Range", "zero one half", "a"), node("Add", "x a")], (2,), SCALARS),
    "OneHot": (
        [node("ArgMax", "x", "a", axis=1, keepdims=0), node("OneHot", "a depth values")],
        ROWS, {"depth": np.array(6), "values": np.array([0, 1], np.float32)},
    ),
    "Gather by the images": (
        [node("ArgMax", "x", "a", axis=1, keepdims=0), node("Gather", "table a")], ROWS, {"table": floats(6, 4)},
    ),
    "GridSample": ([node("GridSample", "x grid", mode="linear")], IMAGE, {"grid": floats(3, 5, 6, 2) / 3}),
    "GridSample nearest": (
        [node("GridSample", "x grid", mode="nearest", padding_mode="border", align_corners=1)],
        IMAGE, {"grid": floats(3, 5, 6, 2)},
    ),
    "product with a matrix": (
        [node("MatMul", "x w", "a"), node("Add", "b a")], SEQUENCE, {"w": floats(6, 3), "b": floats(3)},
    ),
    "Conv and a bias": (
        [node("Conv", "x w c", "a"), node("Add", "a b")],
        IMAGE, {"w": floats(5, 4, 1, 1), "c": floats(5), "b": floats(1, 5, 1, 1)},
    ),
    "sum of a convolution and a map": (
        [node("Conv", "x w", "a"), node("Add", "a b")], IMAGE, {"w": floats(5, 4, 1, 1), "b": floats(7, 9)},
    ),
    "product of a product": (
        [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Add", "a c")],
        SEQUENCE, {"w": floats(6, 3), "b": floats(3)},
    ),
    "pieces of a tensor": (
        [
            node("SplitToSequence", "x sizes", "a", axis=1), node("SequenceAt", "a one", "b"),
            node("SequenceAt", "a zero", "c"), node("SequenceConstruct", "b c b", "d"),
            node("ConcatFromSequence", "d", axis=1),
        ],
        IMAGE, {"sizes": ints(1, 3), "zero": np.array(0), "one": np.array(1)},
    ),
    "pieces of one size": (
        [node("SplitToSequence", "x two", "a", axis=1), node("SequenceAt", "a one")],
        IMAGE, {"two": np.array(2), "one": np.array(1)},
    ),
    "single pieces": (
        [node("SplitToSequence", "x", "a", axis=2, keepdims=0), node("ConcatFromSequence", "a", axis=1, new_axis=1)],
        IMAGE, {},
    ),
    "folded constants": (
        [
            node("Shape", "w", "a"), node("Expand", "half a", "b"), node("Mul", "b w", "c"),
            node("Transpose", "c", "d", perm=[1, 0]), node("MatMul", "x d"),
        ],
        ROWS, {"w": floats(4, 6), **SCALARS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=title)
def test_an_operator_gives_the_values_of_onnx_runtime(case: Case) -> None:
    """Values and shapes are those of the runtime, within rounding."""
    kind, shape, inputs, attributes = case
    options = {"opset": 20, "outputs": 1, **attributes}
    model = one_node(kind, [3, *shape], *inputs, **options)
    images = torch.from_numpy(floats(3, *shape)) * 2
    for ours, theirs in zip(computed(model, images), on_onnxruntime(model, images), strict=True):
        assert list(ours.shape) == list(theirs.shape)
        np.testing.assert_allclose(np.asarray(ours, theirs.dtype), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_small_graph_gives_the_values_of_onnx_runtime(name: str) -> None:
    """The same for operators that take what others compute."""
    nodes, shape, constants = GRAPHS[name]
    model = model_of(nodes, [3, *shape], constants)
    images = torch.from_numpy(floats(3, *shape))
    (ours,), (theirs,) = computed(model, images), on_onnxruntime(model, images)
    np.testing.assert_allclose(np.asarray(ours, theirs.dtype), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attributes", "reason"), [({"softcap": 2.0}, "softcap"), ({"q_num_heads": 5}, "5 heads")])
def test_attention_that_is_not_read_is_refused(attributes: dict[str, Any], reason: str) -> None:
    """The line names the node and what it has."""
    model = model_of([node("Attention", "x x x", name="the node", **attributes)], [3, *SEQUENCE], {}, opset=23)
    graph = folded(graph_of(model, "x", ("y",)))
    with pytest.raises(RequestError, match=f"'the node'.* has .*{reason}.*--outputs"):
        tried(graph, torch.empty(TRIAL, *SEQUENCE, device="meta"), None)


def test_every_operator_is_tested() -> None:
    """The tables have each operator that is registered."""
    there = {case[0] for case in CASES} | {proto.op_type for nodes, _, _ in GRAPHS.values() for proto in nodes}
    assert there >= set(OPERATORS)


UNREAD = {
    "MaxPool": ("x", {"kernel_shape": [2, 2]}, "y z", "returns 2 values"),
    "Loop": ("", {"body": helper.make_graph([], "g", [], [])}, "y", "control flow"),
    "QLinearConv": ("x x x x x x x x", {}, "y", "quantized already"),
    "DequantizeLinear": ("x half", {}, "y", "quantized already"),
    "NonZero": ("x", {}, "y", "no operator that acq reads"),
    "Tile": ("x many", {}, "y", "makes a value of|overflowed"),
    "Expand": ("half many", {}, "y", "makes a constant of more than"),
    "Slice": ("x one one one zero", {}, "y", "steps of zero"),
    "Resize": ("x", {"mode": "linear"}, "y", "neither sizes nor scales"),
    "Pad": ("x one", {}, "y", "has 1 pads"),
    "Conv": ("x half", {}, "y", "weights of 0 axes"),
    "Add": ("x nothing", {}, "y", "which no node before it computes"),
    "Gather": ("x far", {"axis": 1}, "y", "cannot be computed"),
    "Reshape": ("x x", {}, "y", "sizes or places that depend on the values"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_cannot_be_read_is_refused_in_one_line_with_the_node_and_the_way_out(kind: str) -> None:
    inputs, attributes, outputs, reason = UNREAD[kind]
    constants = {
        "half": number(0.5),
        "many": ints(1000, 1000, 1000, 1000),
        "one": ints(1),
        "zero": ints(0),
        "far": ints(9),
    }
    model = model_of([node(kind, inputs, outputs, name="the node", **attributes)], [3, *IMAGE], constants)
    with pytest.raises(RequestError, match=reason) as caught:
        computed(model, torch.zeros(3, *IMAGE))
    assert "the node" in str(caught.value)
    assert "\n" not in str(caught.value)
