"""Runs an exported file on OpenVINO, the second engine of the check, if it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acq.errors import RequestError, first_line

_LAYERS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
_BYTES = {"u8", "i8"}
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
            raise RequestError(
                f"OpenVINO cannot run the file ({first_line(error)}); "
                "uninstall the extra openvino to check the file on ONNX Runtime only"
            ) from error
        running = [operator.get_rt_info() for operator in self._compiled.get_runtime_model().get_ops()]
        kinds = [(facts["layerType"].value, facts["runtimePrecision"].value) for facts in running]
        self.integer_nodes = frozenset(
            name.partition(_SPLIT)[0]
            for facts in running
            if facts["runtimePrecision"].value in _BYTES
            for name in facts["originalLayersNames"].value.split(",")
        )
        self.layers = sum(kind in _LAYERS for kind, _ in kinds)
        self.integer = sum(kind in _LAYERS and precision in _BYTES for kind, precision in kinds)

    def run(self, inputs: np.ndarray) -> tuple[Tensor, ...]:
        """All that the file returns for its input, in order."""
        found = self._compiled(inputs)
        return tuple(torch.from_numpy(found[place].copy()) for place in range(len(self._compiled.outputs)))
