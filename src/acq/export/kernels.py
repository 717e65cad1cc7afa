"""Which operators of a student run on integers, as an engine's own optimised graph says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from acq.export.engine import Engine
from acq.export.openvino_engine import OpenVINO
from acq.export.writer import operator_of_part

_INTEGER_LAYERS = {"QLinearConv", "ConvInteger", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"}
_FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}
_INTEGER_PREFIX = "QLinear"  # of ONNX Runtime's operators on bytes
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
_MOVEMENTS = {*_CONVERSIONS, "Gather", "Pad", "Reshape", "Transpose", "Unsqueeze", "Clip"}


@dataclass(frozen=True)
class Kernels:
    """What an engine makes of a file.

    Attributes:
        layers: Convolutions and linear layers of the engine's graph.
        integer: How many of them run on integers.
        nodes: Names of the file's nodes that run on integers.
    """

    layers: int
    integer: int
    nodes: frozenset[str]


def onnxruntime_kernels(file: Path) -> Kernels:
    """The kernels that ONNX Runtime chooses; raises as ``Engine``."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "optimised.onnx"
        Engine(file, "ORT_ENABLE_EXTENDED", optimised=graph)  # graphs of higher levels fit one machine only
        found = onnx.load(str(graph)).graph
    nodes, constants = found.node, {value.name for value in found.initializer}
    integer = sum(node.op_type in _INTEGER_LAYERS for node in nodes)
    # a product of two computed matrices, such as attention has, is no layer
    floating = sum(node.op_type in _FLOAT_LAYERS and not constants.isdisjoint(node.input) for node in nodes)
    on_integers = (n for n in nodes if n.op_type in _INTEGER_LAYERS or n.op_type.startswith(_INTEGER_PREFIX))
    return Kernels(integer + floating, integer, frozenset(node.name for node in on_integers))


def openvino_kernels(engine: OpenVINO) -> Kernels:
    """The kernels that OpenVINO chose."""
    return Kernels(engine.layers, engine.integer, engine.integer_nodes)


def integer_operators(model: onnx.ModelProto, found: Mapping[str, Kernels]) -> dict[str, tuple[str, ...]]:
    """The engines on which each operator of a student runs on integers.

    An operator does if one of its nodes runs on an integer kernel, or if its values are bytes in the file already.

    Args:
        model: A file whose nodes are named (``acq.export.graph.onnx_model``).
        found: Kernels by engine.

    Returns:
        Engines by the operator's public name. Operators without a node in the file are not there.
    """
    moved = {node.name for node in model.graph.node if node.op_type not in _CONVERSIONS} & _on_bytes(model)
    parts: dict[str, dict[str, str]] = {}
    for node in model.graph.node:
        if node.name:
            parts.setdefault(operator_of_part(node.name), {})[node.name] = node.op_type
    return {
        name: tuple(engine for engine, kernels in found.items() if _deciding(kinds) & (moved | kernels.nodes))
        for name, kinds in parts.items()
    }


def _deciding(kinds: Mapping[str, str]) -> set[str]:
    """The nodes of an operator that say where it runs: its layer, if it has one, or else what computes."""
    layers = {name for name, kind in kinds.items() if kind in _FLOAT_LAYERS}
    computing = {name for name, kind in kinds.items() if kind not in _MOVEMENTS}
    return layers or computing or set(kinds)


def _on_bytes(model: onnx.ModelProto) -> set[str]:
    """The nodes whose values are bytes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values: Iterable[onnx.ValueInfoProto] = [*inferred.value_info, *inferred.output]
    bytes_ = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.UINT8}
    return {node.name for node in model.graph.node if not bytes_.isdisjoint(node.output)}
