"""The public verbs of the library, in plain Python values. The command line has the same verbs."""

from acq.api.evaluate import Target, evaluate, target
from acq.api.files import benchmark, engine, export_onnx, export_run, load
from acq.api.predict import Choice, Prediction, predict, predictions
from acq.api.quantize import inspect, quantize
from acq.api.reports import compare, write_report

__all__ = [
    "Choice",
    "Prediction",
    "Target",
    "benchmark",
    "compare",
    "engine",
    "evaluate",
    "export_onnx",
    "export_run",
    "inspect",
    "load",
    "predict",
    "predictions",
    "quantize",
    "target",
    "write_report",
]
