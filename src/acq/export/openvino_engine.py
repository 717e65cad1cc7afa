"""An exported file on OpenVINO, the second engine that a file is checked on where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acq.errors import RequestError, first_line

_LAYERS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
_BYTES = {"u8", "i8"}


class OpenVINO:
    """Runs a file on OpenVINO's CPU device; of its ``layers`` (convolutions and linear ones) ``integer`` run on bytes.

    OpenVINO writes a layer and the sum after it as one kernel and leaves out the rounding between them, so that a sum
    is a little more precise than the file says.

    Raises:
        RequestError: OpenVINO does not run the file.
        ModuleNotFoundError: the extra ``openvino`` is not installed.
    """

    def __init__(self, file: Path) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        try:
            self._compiled = core.compile_model(str(file), "CPU", settings)
        except RuntimeError as error:
            raise RequestError(
                f"OpenVINO cannot run the file ({first_line(error)[:120]}); "
                "without the extra openvino it is checked on ONNX Runtime alone"
            ) from error
        running = [operator.get_rt_info() for operator in self._compiled.get_runtime_model().get_ops()]
        kinds = [(facts["layerType"].value, facts["runtimePrecision"].value) for facts in running]
        self.layers = sum(kind in _LAYERS for kind, _ in kinds)
        self.integer = sum(kind in _LAYERS and precision in _BYTES for kind, precision in kinds)

    def run(self, fed: np.ndarray) -> Tensor:
        """Logits [N, K] of what the file takes."""
        return torch.from_numpy(self._compiled(fed)[0].copy())
