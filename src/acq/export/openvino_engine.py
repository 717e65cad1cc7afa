"""Runs an exported file on OpenVINO, the second engine of the check, if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acq.errors import RequestError, first_line

_LAYERS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
_MOVEMENTS = {"Convert", "Reorder", "Reshape", "Transpose"}  # of weights
_BYTES = {"u8", "i8"}
_PLACE = "Exception from "
_WITHOUT = "uninstall the extra openvino to check the file on ONNX Runtime only"
_SPLIT = "/WithoutBiases"  # what OpenVINO appends to the name of a layer that it separates from its bias


class OpenVINO:
    """Runs a file on OpenVINO's CPU device.

    OpenVINO fuses a layer with the addition behind it and leaves out the rounding in between. So a sum is slightly more
    precise than in the file.

    Args:
        file: The ONNX file.

    Attributes:
        layers: Number of convolutions and linear layers.
        integer: How many of them run on bytes.
        integer_nodes: Names of the file's nodes that run on bytes, fused ones included.

    Raises:
        RequestError: OpenVINO does not run the file.
        ModuleNotFoundError: The extra ``openvino`` is not installed.
    """

    def __init__(self, file: Path) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        try:
            self._compiled = core.compile_model(str(file), "CPU", settings)
        except RuntimeError as error:
            raise RequestError(f"OpenVINO cannot run the file ({_cause(error)}); {_WITHOUT}") from error
        operators = self._compiled.get_runtime_model().get_ops()
        running = [operator.get_rt_info() for operator in operators]
        kinds = [(facts["layerType"].value, facts["runtimePrecision"].value) for facts in running]
        weighted = [kind in _LAYERS and _has_weights(one) for one, (kind, _) in zip(operators, kinds, strict=True)]
        self.integer_nodes = frozenset(
            name.partition(_SPLIT)[0]
            for facts in running
            if facts["runtimePrecision"].value in _BYTES
            for name in facts["originalLayersNames"].value.split(",")
        )
        self.layers = sum(weighted)
        self.integer = sum(is_layer and kind[1] in _BYTES for is_layer, kind in zip(weighted, kinds, strict=True))

    def run(self, inputs: np.ndarray) -> tuple[Tensor, ...]:
        """All that the file returns for its input, in order.

        Raises:
            RequestError: OpenVINO fails.
        """
        try:
            found = self._compiled(inputs)
        except RuntimeError as error:
            raise RequestError(f"OpenVINO fails while it runs the file ({_cause(error)}); {_WITHOUT}") from error
        return tuple(torch.from_numpy(found[place].copy()) for place in range(len(self._compiled.outputs)))


def _cause(error: RuntimeError) -> str:
    """What OpenVINO says behind the places in its own code, which its messages begin with."""
    lines = [line for line in str(error).splitlines() if not line.startswith(_PLACE)]
    return first_line(RuntimeError("\n".join(lines)))


def _has_weights(operator: Any) -> bool:
    """Whether an operator of OpenVINO's graph reads a constant; a product of two computed matrices is no layer."""
    return any(_is_constant(given.get_source_output().get_node()) for given in operator.inputs())


def _is_constant(operator: Any) -> bool:
    kind = operator.get_rt_info()["layerType"].value
    moves = kind in _MOVEMENTS and _is_constant(operator.inputs()[0].get_source_output().get_node())
    return kind == "Const" or moves
