"""Sessions of ONNX Runtime on the CPU that print nothing: errors are raised alone."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def session_of(
    content: bytes, level: str = "ORT_ENABLE_ALL", *, threads: int = 0, optimised: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session for the content of an ONNX file.

    Args:
        content: Of the file.
        level: ONNX Runtime's level of graph optimisation.
        threads: Number of threads; 0 leaves it to ONNX Runtime.
        optimised: Where to write the optimised graph, if anywhere.

    Raises:
        Exception: The runtime refuses the file; its errors have no common base.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal errors alone
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    # with a fallback it would print to standard output
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=False)
