"""One operator of ATen on bytes, written as the export writes it and run on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from acq.export import graph as _  # noqa: F401  # registers the operators
from acq.export.registry import OPERATORS
from acq.export.writer import Value, Writer
from acq.network.operators import operator_of
from acq.quantization.quantizers import ActivationQuantizer

ZERO_POINT = 37
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


def some_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def quantizer(scale: float = 0.37, zero_point: int = 50, bits: int = 8) -> ActivationQuantizer:
    """A quantizer whose scale no mean of small integers is half a multiple of."""
    made = ActivationQuantizer(bits, "wanted")
    made.set_qparams(torch.tensor(scale), torch.tensor(float(zero_point)))
    return made


class Written:
    """An operator in ONNX. Its uint8 arguments are quantized values, its other tensors are constants.

    Args:
        operator: An operator of ATen; of several results the first is taken.
        args: Its arguments.
        kwargs: Its keyword arguments.
        behind: The quantizer behind it; without one it must keep the levels of its input.
        scales: Scales of the uint8 arguments.
    """

    def __init__(
        self,
        operator: Any,
        *args: Any,
        kwargs: Mapping[str, Any] = NO_KWARGS,
        behind: ActivationQuantizer | None = None,
        scales: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.behind = behind
        self._scales = scales
        self.inputs: dict[str, Tensor] = {}
        writer, graph = Writer(), fx.Graph()
        given = tree_map(partial(self._argument, writer, graph), args)
        node = graph.call_function(operator, given, dict(kwargs))
        left = iter(scales)
        found = operator(*tree_map(lambda value: _real(value, left), args), **kwargs)
        first = found if isinstance(found, Tensor) else found[0]
        self.real = first
        for each in (node, *([] if isinstance(found, Tensor) else [graph.call_function(_first, (node, 0))])):
            each.meta = {"name": each.name, "shape": (-1, *first.shape[1:])}
        written = OPERATORS[operator_of(node)](writer, node)
        self.value: Value = written[0] if isinstance(written, list) else written
        if behind is not None:
            self.value = writer.quantized(self.value, behind, first.dim())
        assert self.value.bytes is not None
        writer.add("Identity", [self.value.bytes], "y")
        self.kinds = [made.op_type for made in writer.nodes]
        sizes = {name: ["N", *x.shape[1:]] for name, x in self.inputs.items()}
        entries = [helper.make_tensor_value_info(name, TensorProto.UINT8, size) for name, size in sizes.items()]
        exit_ = helper.make_tensor_value_info("y", TensorProto.UINT8, ["M", *first.shape[1:]])
        nodes, constants = writer.finished(["y"])
        made_graph = helper.make_graph(nodes, "one", entries, [exit_], initializer=constants)
        self.model = helper.make_model(made_graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
        onnx.checker.check_model(self.model, full_check=True)

    def _argument(self, writer: Writer, graph: fx.Graph, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"x{len(graph.nodes)}"
        if value.dtype == torch.uint8:
            node = graph.placeholder(name)
            qparams = writer.number(self._scales[len(self.inputs)]), writer.byte(ZERO_POINT)
            writer.values[node], self.inputs[name] = Value(None, name, qparams), value
            node.meta = {"name": name, "shape": (-1, *value.shape[1:])}
        else:
            node = graph.create_node("get_attr", name)
            writer.tensors[node] = value
            node.meta = {"name": name, "shape": tuple(value.shape)}
        return node

    @property
    def wanted(self) -> Tensor:
        """The bytes that a student has."""
        if self.behind is None:
            return self.real + ZERO_POINT
        scaled = self.behind(self.real).detach() / self.behind.scale.detach()
        return scaled.round() + self.behind.zero_point

    def run(self, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """The bytes that ONNX Runtime computes."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {name: x.numpy() for name, x in (inputs or self.inputs).items()})
        return torch.from_numpy(found)

    def is_exact(self) -> bool:
        """Whether every byte is the student's."""
        found = self.run()
        return found.shape == self.wanted.shape and torch.equal(found.float(), self.wanted)

    def moves_bytes(self) -> bool:
        """Whether it works on bytes alone, with the levels of its input."""
        return self.value.qparams == ("number_1.0", f"byte_{ZERO_POINT}") and "DequantizeLinear" not in self.kinds


def _real(value: Any, scales: Iterator[float]) -> Any:
    is_quantized = isinstance(value, Tensor) and value.dtype == torch.uint8
    return (value.float() - ZERO_POINT) * next(scales) if is_quantized else value


def _first(found: Any, place: int) -> Any:
    return found[place]
