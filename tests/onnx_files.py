"""ONNX models for tests: of one operator, and of whole networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OLDEST_IR = 10


def model_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model that takes ``x``; its constants are initializers."""
    arrays = {
        name: value if isinstance(value, np.ndarray) else np.array(value) for name, value in (constants or {}).items()
    }
    arrays = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in arrays.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=OLDEST_IR)


def one_node(
    kind: str, shape: Sequence[int | str], *inputs: Any, opset: int = 20, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one operator: ``x`` and constants in, ``y`` or several outputs out."""
    constants = {f"c{place}": value for place, value in enumerate(inputs) if value is not None}
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(inputs)]
    results = ["y"] if outputs == 1 else [f"y{place}" for place in range(outputs)]
    node = helper.make_node(kind, ["x", *names], results, name="node", **attributes)
    return model_of([node], shape, constants, results, opset)


def on_onnxruntime(model: onnx.ModelProto, images: Tensor) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: images.numpy()})


def exported(network: nn.Module, path: Path, size: tuple[int, ...], *, dynamo: bool, folded: bool, free: bool) -> Path:
    """A network as an ONNX file of one of torch's exporters."""
    images = torch.zeros(2 if free else 1, *size)
    options: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["scores"]}
    if dynamo:
        options |= {"optimize": folded, "verbose": False}
        options |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}
    else:
        options |= {"dynamic_axes": {"pixels": {0: "n"}, "scores": {0: "n"}}} if free else {}
        kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
        options |= {} if folded else kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), str(path), dynamo=dynamo, **options)
    return path
