"""Quantize a trained image classifier to low-bit integers without its training data."""

from acq.api import (
    Choice,
    Prediction,
    benchmark,
    compare,
    evaluate,
    export_onnx,
    export_run,
    inspect,
    load,
    predict,
    quantize,
    write_report,
)
from acq.config import Config
from acq.core.values import Framing, Preprocessing, Record
from acq.errors import Interrupted, RequestError, RunError
from acq.quantization.student import Student
from acq.recipe import Result

__all__ = [
    "Choice",
    "Config",
    "Framing",
    "Interrupted",
    "Prediction",
    "Preprocessing",
    "Record",
    "RequestError",
    "Result",
    "RunError",
    "Student",
    "benchmark",
    "compare",
    "evaluate",
    "export_onnx",
    "export_run",
    "inspect",
    "load",
    "predict",
    "quantize",
    "write_report",
]
__version__ = "0.2.0"
